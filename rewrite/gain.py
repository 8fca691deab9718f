"""What a rewrite that is not made would save, by a nominal roofline.

An operator takes as long as its arithmetic or its memory traffic, whichever is longer, on a machine of certain
:class:`Rates` (Williams, Waterman and Patterson, Roofline, CACM 2009). :data:`NOMINAL` ones are not measured: the
figures order what could be done and say how much of a model it concerns.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewrite.cost import tensor_bytes, written_bytes
from rewrite.flops import Sizes, flops
from rewrite.ops import view

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.fx import Node

    from rewrite.graph import Graph
    from rewrite.ops import View

FLOPS_PER_SECOND = 1e11
"""Nominal arithmetic in float32: a few cores of a processor with wide vectors."""

BYTES_PER_SECOND = 2e10
"""Nominal memory bandwidth beside it. Accelerators are faster in both by much the same factor."""


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        flops: floating-point operations.
        bytes: of memory traffic.
    """

    flops: float = FLOPS_PER_SECOND
    bytes: float = BYTES_PER_SECOND

    def seconds(self, flops: int, moved: int) -> float:
        """How long arithmetic and the traffic beside it take: as long as the longer of both."""
        return max(flops / self.flops, moved / self.bytes)


NOMINAL = Rates()


@dataclass(frozen=True)
class Work:
    """What operators do in one call, for one sample where the batch is symbolic. It adds up.

    Attributes:
        flops: floating-point operations; see :mod:`rewrite.flops`.
        bytes: of tensors read and written; views move none.
        seconds: estimated time, nominal unless other rates were given.
    """

    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)


NOTHING = Work()


def work(nodes: Iterable[Node], sizes: Sizes, rates: Rates = NOMINAL) -> Work:
    """The work of operators, each counted by itself."""
    return sum((_of(node, sizes, rates) for node in nodes), NOTHING)


def total(graph: Graph, rates: Rates = NOMINAL) -> Work:
    """The work of a whole program, code on weights included."""
    return work(graph.calls(), Sizes(graph), rates)


def gain(
    nodes: Iterable[Node], sizes: Sizes, keeps: tuple[type[View], ...] | None = None, rates: Rates = NOMINAL
) -> Work:
    """The work that would vanish if a rule rewrote the operators that it has matched, or has begun to match.

    That is all but those of the kinds that it ``keeps``, or all but the costliest where it names none: what is merged
    or folded leaves one operator. A beginning of one counts whole, for what it would be merged with is not known.
    """
    nodes = list(nodes)
    if keeps is not None:
        return work((node for node in nodes if not isinstance(view(node), keeps)), sizes, rates)
    each = sorted((_of(node, sizes, rates) for node in nodes), key=lambda part: part.seconds)
    return sum(each[:-1] or each, NOTHING)


def _of(node: Node, sizes: Sizes, rates: Rates) -> Work:
    written = 0 if node.op != "call_function" or node.target is operator.getitem else written_bytes(node, sizes)
    if not written:
        return NOTHING
    arithmetic = flops(node, sizes)
    moved = written + sum(tensor_bytes(operand, sizes) for operand in node.all_input_nodes)
    return Work(arithmetic, moved, rates.seconds(arithmetic, moved))
