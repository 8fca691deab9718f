"""Convolutions and linear layers of our own, for channels last, in C++ that is compiled once for the machine.

oneDNN's kernels, which TorchInductor calls, are as fast where there is much to multiply. But each call of them takes
tens of microseconds for descriptors, and Winograd's algorithm is not among them. Ours take one pass: what follows a
convolution is computed while its sums are in registers.

- :mod:`codegen.native.library`: compiles and loads the C++ beside this file
- :mod:`codegen.native.soundness`: whether they compute what they should here
- :mod:`codegen.native.operators`: the operators that it registers, ``torch_rewrite::native_*``
- :mod:`codegen.native.kernels`: the packed weights of a convolution, and the call with them
- :mod:`codegen.native.sites`: where in a graph there is one, and what can be done along with it
- :mod:`codegen.native.contest`: one of them beside the library's kernel, to be timed
- :mod:`codegen.native.layouts`: what readers find where results lie otherwise
- :mod:`codegen.native.excitation`: squeeze-and-excitation, which is one call
- :mod:`codegen.native.transforms`: depthwise convolutions in the frequency domain, which are one call
- :mod:`codegen.native.calls`: an operator of ours in the place of a node
- :mod:`codegen.native.binding`: puts them where they are faster
- :mod:`codegen.native.undoing`: Winograd's algorithm undone where our kernels do not belong
- :mod:`codegen.native.parts`: kernels whose results are concatenated do what follows the concatenation
- :mod:`codegen.native.sequences`: one call of those that follow each other, :mod:`codegen.native.runs`, with
  :mod:`codegen.native.places` for what is between them
"""

from __future__ import annotations

from codegen.native.binding import bind
from codegen.native.library import available, begin, identity
from codegen.native.sequences import join
from codegen.native.undoing import undo
from rewrite.cplusplus import supported

__all__ = ["available", "begin", "bind", "identity", "join", "supported", "undo"]
