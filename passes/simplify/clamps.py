"""Clamps of clamped values: ``relu(relu(x))``, ``relu6(relu(x))``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.memory import sharing_refusal
from rewrite.ops import Clamp, view_as
from rewrite.rule import Fidelity, Match, Miss, Rule, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeClamps(Rule):
    """Of two clamps in a row, where one interval lies in the other, only the narrower is needed.

    ``relu6(relu(x)) = relu(relu6(x)) = relu6(x)``. Equal in every value, NaN included; not declared bitwise because
    devices differ in the sign that they give to a zero at the bound.
    """

    fidelity = Fidelity.ELEMENTWISE
    radius = 1
    starts = "a clamp of a clamp, one interval within the other"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each clamp of a clamp where one interval lies in the other."""
        for node in dirty:
            outer = view_as(node, Clamp)
            inner = None if outer is None else view_as(outer.input, Clamp)
            if outer is None or inner is None:
                continue
            if outer.low <= inner.low and inner.high <= outer.high:
                yield self._drop_outer(inner, outer)
            elif inner.low <= outer.low and outer.high <= inner.high:
                yield self._drop_inner(inner, outer)

    def _drop_outer(self, inner: Clamp, outer: Clamp) -> Match | Miss:
        nodes = (inner.node, outer.node)
        refusal = sharing_refusal(inner.node, outer.node)
        if refusal is not None:
            return Miss(self.name, outer.node, refusal, nodes)
        shared = len(inner.node.users) > 1
        return Match(self, nodes, nodes if shared else nodes[1:], {"inner": inner, "outer": None})

    def _drop_inner(self, inner: Clamp, outer: Clamp) -> Match | Miss:
        nodes = (inner.node, outer.node)
        reader = next((user for user in inner.node.users if user is not outer.node), None)
        if reader is not None:
            return Miss(self.name, outer.node, read_elsewhere(inner.node, reader, outer.node), nodes)
        return Match(self, nodes, (outer.node,), {"inner": inner, "outer": outer})

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """The narrower clamp alone."""
        if match.outer is None:
            return (g.keep(match.inner.node),) * len(match.outputs)
        low, high = (None if math.isinf(bound) else bound for bound in (match.outer.low, match.outer.high))
        if low is not None and high is not None:
            return g(aten.hardtanh.default, match.inner.input, low, high)
        if low == 0:
            return g(aten.relu.default, match.inner.input)
        return g(aten.clamp.default, match.inner.input, low, high)
