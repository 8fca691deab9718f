"""Clamps of clamped values: ``relu(relu(x))``, ``relu6(relu(x))``, ``hardtanh(relu6(x))``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.memory import sharing_refusal
from rewrite.ops import Clamp, view_as
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeClamps(Rule):
    r"""Two clamps in a row are one, to what the second makes of the bounds of the first.

    .. math:: \min(\max(\min(\max(x, a), b), c), d) = \min(\max(x, a'), b'), \quad
        a' = \min(\max(a, c), d),\ b' = \min(\max(b, c), d)

    ``relu6(relu(x)) = relu(relu6(x)) = relu6(x)``. Intervals without a common point leave a clamp to one point, which
    still passes NaN on. Equal in every value, NaN included; not declared bitwise because devices differ in the sign
    that they give to a zero at the bound.
    """

    fidelity = Fidelity.ELEMENTWISE
    radius = 1
    starts = "a clamp of a clamp"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each clamp of a clamp."""
        for node in dirty:
            outer = view_as(node, Clamp)
            inner = None if outer is None else view_as(outer.input, Clamp)
            if outer is None or inner is None:
                continue
            low, high = (min(max(bound, outer.low), outer.high) for bound in (inner.low, inner.high))
            if (low, high) == (inner.low, inner.high):
                yield self._drop_outer(inner, outer)
            else:
                captures = {"inner": inner, "bounds": (low, high)}
                yield Match(self, (inner.node, outer.node), (outer.node,), captures)

    def _drop_outer(self, inner: Clamp, outer: Clamp) -> Match | Miss:
        nodes = (inner.node, outer.node)
        refusal = sharing_refusal(inner.node, outer.node)
        if refusal is not None:
            return Miss(self.name, outer.node, refusal, nodes)
        return Match(self, nodes, nodes, {"inner": inner, "bounds": None})

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """One clamp."""
        if match.bounds is None:
            return (g.keep(match.inner.node),) * 2
        low, high = (None if math.isinf(bound) else bound for bound in match.bounds)
        if low is not None and high is not None and low < high:
            return g(aten.hardtanh.default, match.inner.input, low, high)
        if low == 0 and high is None:
            return g(aten.relu.default, match.inner.input)
        return g(aten.clamp.default, match.inner.input, low, high)
