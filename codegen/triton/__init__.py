"""Triton kernels for regions of a graph that general compilers take for opaque calls.

From the graph to code that runs:

- :mod:`~codegen.triton.family`: what a kind of kernels is; :mod:`~codegen.triton.depthwise` is one
- :mod:`~codegen.triton.region`: what a kernel computes around its main operator
- :mod:`~codegen.triton.device`: what bounds a kernel
- :mod:`~codegen.triton.planning`: which regions become kernels, and why others do not
- :mod:`~codegen.triton.emission`, :mod:`~codegen.triton.tile`, :mod:`~codegen.triton.pointwise`: writing one
- :mod:`~codegen.triton.operators`, :mod:`~codegen.triton.binding`, :mod:`~codegen.triton.launching`: running it
- :mod:`~codegen.triton.resources`, :mod:`~codegen.triton.gate`: what compiled kernels use
"""

from codegen.triton.depthwise import Depthwise
from codegen.triton.family import register

register(Depthwise())
