"""What other compilers make of a module: the convolutions and matrix products that they leave.

- :mod:`benchmarks.peers.inductor`: TorchInductor with freezing
- :mod:`benchmarks.peers.onnx_runtime`: ONNX Runtime, all graph optimizations
- :mod:`benchmarks.peers.openvino`: OpenVINO on the CPU

Each gives :class:`Contractions`. They are what dominates the networks that this project is for, and the one thing that
can be counted alike in three representations: pointwise operators are fused in ways that no count compares.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Contractions:
    """Convolutions and matrix products of a program.

    Attributes:
        calls: how many there are.
        flops: two for each multiplication and the addition after it.
    """

    calls: int = 0
    flops: int = 0

    def __add__(self, other: Contractions) -> Contractions:
        return Contractions(self.calls + other.calls, self.flops + other.flops)


def convolution(source: Sequence[int], weight: Sequence[int], result: Sequence[int], transposed: bool) -> Contractions:
    """One convolution, ``[N, C, *size]`` to ``[N, O, *size]``, with a weight in whatever order it is packed."""
    side = source if transposed else result
    return Contractions(1, 2 * math.prod(side) * math.prod(weight) // side[1])


def product(left: Sequence[int], result: Sequence[int]) -> Contractions:
    """One matrix product ``[..., M, K] @ [..., K, N]``."""
    return Contractions(1, 2 * math.prod(result) * left[-1])


Peer = Callable[[nn.Module, tuple[Any, ...]], Contractions]


def available() -> dict[str, Peer]:
    """The peers that are installed, by name."""
    from benchmarks.peers import inductor

    found: dict[str, Peer] = {"Inductor": inductor.contractions}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        from benchmarks.peers import onnx_runtime

        found["ONNX Runtime"] = onnx_runtime.contractions
        if importlib.util.find_spec("openvino"):
            from benchmarks.peers import openvino

            found["OpenVINO"] = openvino.contractions
    return found
