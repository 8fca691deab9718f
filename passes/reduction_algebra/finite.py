"""Values that are one and the same number wherever they are numbers at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes import reductions
from passes.ranges import value_range
from passes.reduction_algebra.fills import filled, source_of
from rewrite.ops import Fill, is_tensor, reduction, value, view
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph


_REMEDY = "name 'reduction-algebra{finite=True}' in the pipeline where inputs are finite"


@dataclass(frozen=True)
class FillDegenerate(Rule):
    """Fill in the number that a value is for all finite inputs, and drop what it was computed from.

    ``x - x`` is zero, a softmax along a dimension of size one is one, ``clamp(minimum(x, 0), 0, 1)`` is zero: where the
    range of a value (:mod:`passes.ranges`) is a single number. For an infinity or NaN among the inputs the model itself
    may give NaN, which is then silently a number. So this is done where it is asked for only.
    """

    finite: bool = False

    fidelity = Fidelity.ELEMENTWISE
    starts = "a value that is the same number for all finite inputs"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each such value among ``dirty``."""
        for node in dirty:
            if not is_tensor(node) or isinstance(view(node), Fill) or graph.is_constant(node):
                continue
            found = value_range(node)
            if not found.nodes or found.low != found.high or abs(found.low) > torch.finfo(value(node).dtype).max:
                continue  # a number that the dtype has not is an infinity of the model's
            yield self._look(graph, node, found.low, tuple(sorted(found.nodes)))

    def _look(self, graph: Graph, node: Node, number: Any, nodes: tuple[Node, ...]) -> Match | Miss:
        if not self.finite:
            refusal = Refusal(
                f"it is {float(number):g} for every finite input, and NaN perhaps for others", node, _REMEDY
            )
            return Miss(self.name, node, refusal, nodes)
        empty = next((inner for inner in nodes if _may_be_empty(inner)), None)
        if empty is not None:
            refusal = Refusal("it is NaN for a batch of none, of which it takes the mean", empty,
                              "leave the batch out of the mean")  # fmt: skip
            return Miss(self.name, node, refusal, nodes)
        source = source_of(graph, node)
        if isinstance(source, Refusal):
            return Miss(self.name, node, source, nodes)
        inside = set(nodes)
        outputs = tuple(inner for inner in nodes[:-1] if not inside.issuperset(inner.users))
        return Match(self, nodes, (*outputs, node), {"number": float(number), "source": source})

    def rewrite(self, match: Match, g: Builder) -> tuple[Node, ...]:
        """The number, in the value's shape; what others read of its history stays."""
        for node in match.nodes[:-1] if len(match.outputs) > 1 else ():
            g.keep(node)
        return (*match.outputs[:-1], filled(g, match.source, match.number))


def _may_be_empty(node: Node) -> bool:
    """Whether a node is a mean of perhaps no elements."""
    found = reduction(node)
    return found is not None and found.kind == "mean" and not reductions.count(found.input, found.dims)
