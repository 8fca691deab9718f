"""Pointwise operators as Triton expressions: what a kernel of one operator gives, against PyTorch in float64."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node

from codegen.triton.pointwise import HELPERS, Cost, computing, cost, helpers, printable, printed
from codegen.triton.source import Source
from rewrite.trace import capture
from tests.corpus import input_for, load

pytest.importorskip("triton")

aten = torch.ops.aten
NAN, INF = float("nan"), float("inf")
TINY = 2.0**-126
KINDS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.bool: "*i1", torch.int8: "*i8",
    torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip

EDGES = (
    NAN, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, TINY, -TINY, 3e38, -3e38, 1e20, -1e20, 1e-8, -1e-8, 1.0, -1.0, 0.5, -0.5,
    1.5, -1.5, 2.5, -2.5, 0.49999997, -0.49999997, 3.0, -3.0, 6.0, 0.625, -0.625, 20.0, 20.5, 88.0, 89.5, -87.0, -88.0,
    -104.0, 8388607.5, -8388607.5, 1e-3, -1e-3,
)  # fmt: skip
FEW = (NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 2.5, 3.0, -1e-30, 1e30, 7.25)
WHOLE = (0, 1, -1, 2, -3, 7, 100, 127, -128, -127, 64, -7)


def spread() -> Tensor:
    """Numbers of every size and sign, more of them near 0 and 1."""
    size = torch.cat([torch.linspace(0, 12, 300), torch.logspace(-38, 38, 130), 1 + torch.linspace(-1, 1, 60) / 100])
    return torch.cat([size, -size])


ONE = torch.cat([torch.tensor(EDGES), spread()])
TWO = [torch.tensor(values) for values in zip(*itertools.product(FEW, FEW), strict=True)]
THREE = [torch.tensor(values) for values in zip(*itertools.product(FEW[:9], FEW[:9], FEW[:9]), strict=True)]


@dataclass(frozen=True)
class Case:
    """An operator with its arguments, of which the strings ``x``, ``y``, ``z`` and ``mask`` stand for tensors.

    Attributes:
        ulps: how far the result may be off, in units in the last place of float32.
        beside: numbers of a size beside which the result may be off, of the tensors in float64.
        signed: whether zeros have the sign that they have in PyTorch.
    """

    target: Any
    arguments: tuple[Any, ...] = ("x",)
    keywords: dict[str, Any] = field(default_factory=dict)
    ulps: float = 1
    beside: Callable[..., Tensor] | None = None
    signed: bool = True

    def __str__(self) -> str:
        said = [*map(str, self.arguments), *(f"{name}={argument}" for name, argument in self.keywords.items())]
        return f"{str(self.target).removeprefix('aten.')}({','.join(said)})"
