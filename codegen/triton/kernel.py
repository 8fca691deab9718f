"""A region's kernel: its source, what it is launched with, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from codegen.triton.region import Region
from codegen.triton.source import Source
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True)
class Layout:
    """How a tensor that a kernel reads or gives lies in memory.

    Attributes:
        shape: its sizes.
        stride: its strides.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Launchable:
    """A kernel without the graph that it comes from, which holds weights.

    Attributes:
        source: the code.
        results: what it gives.
        samples: N.
        programs: how many a launch has.
        around: what it computes, for messages.
    """

    source: Source
    results: tuple[Layout, ...]
    samples: int
    programs: int
    around: str


@dataclass(frozen=True)
class Kernel:
    """A region with the code that computes it.

    Attributes:
        region: what it computes.
        source: the code.
        operands: what it reads, in the order of its arguments.
        results: what it gives, in the order of the region's outputs; partial sums ``[N, slots, C]`` in float32 for
            each total.
        programs: how many programs a launch has, as a Python expression of the number of samples ``N``.
        schedules: how it is cut into programs, in words.
        layouts: the strides with which it reads constants that lie otherwise in the graph.
    """

    region: Region
    source: Source
    operands: tuple[Node, ...]
    results: tuple[Layout, ...]
    programs: str
    schedules: tuple[str, ...]
    layouts: Mapping[Node, tuple[int, ...]] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[Layout, ...]:
        """How its operands lie in memory."""
        found = map(layout_of, self.operands)
        return tuple(
            replace(each, stride=self.layouts.get(node, each.stride))
            for node, each in zip(self.operands, found, strict=True)
        )

    @property
    def samples(self) -> int:
        """N."""
        return self.region.sizes["n"]

    @cached_property
    def launchable(self) -> Launchable:
        """What is left of it once it is bound."""
        programs = int(eval(self.programs, {"__builtins__": {}}, {"N": self.samples}))  # our own arithmetic
        around = f"{len(self.region.nodes)} operators around '{self.region.main.node.name}'"
        return Launchable(self.source, self.results, self.samples, programs, around)

    @property
    def operator(self) -> str:
        """The name of its operator: of the function, and of all that the operator's results depend on."""
        return f"{self.source.function}_{self.source.hash}"


def layout_of(node: Node) -> Layout:
    """That of a recorded value."""
    recorded = value(node)
    shape, stride = tuple(map(int, recorded.shape)), tuple(map(int, recorded.stride()))
    return Layout(shape, stride, recorded.dtype)


def partial_sums(sizes: Mapping[str, int], slots: int) -> Layout:
    """The partial sums of every channel of every sample."""
    shape = (sizes["n"], slots, sizes["c"])
    return Layout(shape, (slots * sizes["c"], sizes["c"], 1), torch.float32)
