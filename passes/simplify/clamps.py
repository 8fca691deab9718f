"""Clamps of clamped values: ``relu(relu(x))``, ``relu6(relu(x))``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.simplify.removal import Removal
from rewrite.ops import Clamp, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import View

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveClamp(Removal):
    """Drop a clamp to an interval that the value lies in already: ``relu(relu6(x)) = relu6(x)``.

    Equal in every value, NaN included; devices differ in the sign that they give a zero at the bound.
    """

    fidelity = Fidelity.ELEMENTWISE

    def source(self, found: View) -> Node | None:
        """The value that is clamped already."""
        inner = view_as(found.input, Clamp) if isinstance(found, Clamp) else None
        if inner is None or not isinstance(found, Clamp):
            return None
        return inner.node if found.low <= inner.low and inner.high <= found.high else None


@dataclass(frozen=True)
class MergeClamps(Rule):
    """Drop a clamp before one to a narrower interval: ``relu6(relu(x)) = relu6(x)``, as exact as :class:`RemoveClamp`."""

    fidelity = Fidelity.ELEMENTWISE
    radius = 1

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each clamp of a value that was clamped to a wider interval."""
        for node in dirty:
            outer = view_as(node, Clamp)
            inner = None if outer is None else view_as(outer.input, Clamp)
            if outer is None or inner is None or (inner.low, inner.high) == (outer.low, outer.high):
                continue
            if inner.low <= outer.low and outer.high <= inner.high:
                yield Match(self, (inner.node, outer.node), (node,), {"inner": inner, "outer": outer})

    def check(self, match: Match) -> Refusal | None:
        """The wider clamp must have no other reader."""
        reader = next((user for user in match.inner.node.users if user is not match.outer.node), None)
        return None if reader is None else Refusal("the value between the two is read elsewhere", reader)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The narrower clamp alone."""
        low, high = (None if math.isinf(bound) else bound for bound in (match.outer.low, match.outer.high))
        if low is not None and high is not None:
            return g(aten.hardtanh.default, match.inner.input, low, high)
        if low == 0:
            return g(aten.relu.default, match.inner.input)
        return g(aten.clamp.default, match.inner.input, low, high)
