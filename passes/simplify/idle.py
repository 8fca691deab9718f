"""Activations of values that they leave as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.memory import layout_refusal, sharing_refusal
from passes.ranges import unchanged, value_range
from rewrite.ops import activation
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph


@dataclass(frozen=True)
class RemoveIdleActivation(Rule):
    """Drop an activation that is the identity on every value that it can meet.

    ``relu(sigmoid(x)) = sigmoid(x)``, ``clamp(softmax(x), 0, 1) = softmax(x)``, ``relu(avg_pool(relu(x)))``: see
    :mod:`passes.ranges`. NaN and infinities pass as they did.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "an activation that changes nothing in the range of its argument"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each such activation among ``dirty``."""
        for node in dirty:
            act = activation(node)
            region = None if act is None else unchanged(act)
            if act is None or region is None:
                continue
            found = value_range(act.input)
            if not found.nodes or not found.within(region):
                continue
            nodes = tuple(sorted(found.nodes))
            refusal = sharing_refusal(act.input, node) or layout_refusal(graph, act.input, node)
            if refusal is not None:
                yield Miss(self.name, node, refusal, (*nodes, node))
                continue
            inside = {*nodes, node}
            outputs = tuple(inner for inner in nodes if not inside.issuperset(inner.users))
            yield Match(self, (*nodes, node), (*outputs, node), {"source": act.input, "kept": nodes})

    def rewrite(self, match: Match, g: Builder) -> tuple[Node, ...]:
        """The operators that bound the range as they are, and the last of them in the activation's place."""
        for node in match.kept:
            g.keep(node)
        return (*match.outputs[:-1], match.source)
