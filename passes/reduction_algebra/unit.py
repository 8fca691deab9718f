"""Reductions along dimensions of size one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import reductions
from passes.memory import layout_refusal, sharing_refusal
from rewrite import compat
from rewrite.graph import fake_call
from rewrite.ops import Reduction, reduction, value
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveUnitReduction(Rule):
    """A sum, mean, product, maximum, minimum or ``logsumexp`` of one element is that element.

    Every value stays what it is, NaN and infinities included. A standard deviation of one element is zero or NaN, and
    is no reduction of this kind.
    """

    fidelity = Fidelity.ELEMENTWISE
    radius = 1
    starts = "a reduction along dimensions of size one"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each reduction along dimensions of size one among ``dirty``."""
        for node in dirty:
            old = reduction(node)
            if old is None or not reductions.is_unit(old.input, old.dims) or reductions.reads_indices(old):
                continue
            refusal = sharing_refusal(old.input, node) or _layout_refusal(graph, old)
            if refusal is not None:
                yield Miss(self.name, node, refusal, old.nodes)
            else:
                yield Match(self, old.nodes, (node,), {"old": old})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """What was reduced, without the dimensions that go."""
        return reductions.finished(g, match.old.input, match.old)


def _layout_refusal(graph: Graph, old: Reduction) -> Refusal | None:
    """Why readers would see other strides."""
    if old.keepdim or not old.dims:
        return layout_refusal(graph, old.input, old.node)
    direct = fake_call(graph.fake_mode, aten.squeeze.dims, (old.input, list(old.dims)), {})
    pairs = zip(direct.stride(), value(old.node).stride(), strict=True)
    if all(compat.statically_known_true(i == j) for i, j in pairs):
        return None
    return Refusal("without the reduction its result would have other strides", old.node,
                   f"call contiguous() on what {called(old.node)} reads")  # fmt: skip
