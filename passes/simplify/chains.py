"""Two operators in a row that are one, or none: reshapes, permutations, negations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes.memory import is_returned, same_strides, sharing_refusal
from rewrite import compat
from rewrite.graph import fake_call
from rewrite.ops import Negation, Permute, Reshape, View, same_shape, value, view_as
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


def _pairs(kind: type[View], dirty: Iterable[Node]) -> Iterator[tuple[Any, Any]]:
    """Views ``(inner, outer)`` of a kind where the outer one reads the inner one."""
    for node in dirty:
        outer = view_as(node, kind)
        inner = None if outer is None else view_as(outer.operands[0], kind)
        if inner is not None:
            yield inner, outer


def _match(rule: Rule, inner: View, outer: View, cancels: bool, **captures: Any) -> Match | Miss:
    """The match of a pair. One that cancels may be read in the middle: the inner operator stays for those readers."""
    nodes = (inner.node, outer.node)
    refusal = sharing_refusal(inner.operands[0], outer.node) if cancels else None
    if refusal is not None:
        return Miss(rule.name, outer.node, refusal, nodes)
    shared = cancels and len(inner.node.users) > 1
    captures |= {"inner": inner, "outer": outer, "cancels": cancels, "shared": shared}
    return Match(rule, nodes, nodes if shared else nodes[1:], captures)


def _cancelled(match: Match, g: Builder) -> tuple[Node, ...]:
    source: Node = match.inner.operands[0]
    return (g.keep(match.inner.node), source) if match.shared else (source,)


@dataclass(frozen=True)
class MergeReshapes(Rule):
    """Two reshapes, squeezes or unsqueezes in a row are one, or none where the first shape comes back."""

    fidelity = Fidelity.BITWISE
    radius = 1
    starts = "two reshapes in a row"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each reshape of a reshape."""
        for inner, outer in _pairs(Reshape, dirty):
            cancels = same_shape(inner.input, outer.node)
            merged = (
                value(inner.input) if cancels
                else fake_call(graph.fake_mode, aten.reshape.default, (inner.input, list(outer.shape)), {})
            )  # fmt: skip
            pairs = zip(merged.stride(), value(outer.node).stride(), strict=True)
            if all(compat.statically_known_true(i == j) for i, j in pairs):
                copied = not cancels and is_returned(outer.node) and _may_copy(graph, inner)
                yield self._returned(inner, outer) if copied else _match(self, inner, outer, cancels)
            else:
                refusal = Refusal("the merged reshape would have other strides", inner.node,
                                  f"call contiguous() on what {called(inner.node)} reads")  # fmt: skip
                yield Miss(self.name, outer.node, refusal, (inner.node, outer.node))

    def _returned(self, inner: Reshape, outer: Reshape) -> Miss:
        reason = "on other strides the model returns a copy, which would become a view of what is reshaped"
        refusal = Refusal(reason, inner.input, f"write {called(inner.node)} and {called(outer.node)} as one reshape")
        return Miss(self.name, outer.node, refusal, (inner.node, outer.node))

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """One reshape to the last shape."""
        if match.cancels:
            return _cancelled(match, g)
        return g(aten.reshape.default, match.inner.input, list(match.outer.shape))


def _may_copy(graph: Graph, found: Reshape) -> bool:
    """Whether a reshape copies on some strides: it is no view of a tensor whose dimensions all have gaps between."""
    x = found.input
    wide = fake_call(graph.fake_mode, aten.new_empty.default, (x, [2 * size for size in value(x).shape]), {})
    for dim, size in enumerate(value(x).shape):
        wide = fake_call(graph.fake_mode, aten.slice.Tensor, (wide, dim, 0, size), {})
    try:
        fake_call(graph.fake_mode, aten.view.default, (wide, list(value(found.node).shape)), {})
    except (RuntimeError, ValueError):
        return True
    return False


@dataclass(frozen=True)
class MergePermutes(Rule):
    """Two permutations in a row are one, or none where they are inverse to each other."""

    fidelity = Fidelity.BITWISE
    radius = 1
    starts = "two permutations in a row"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each permutation of a permutation."""
        for inner, outer in _pairs(Permute, dirty):
            order = tuple(inner.order[dim] for dim in outer.order)
            yield _match(self, inner, outer, order == tuple(range(len(order))), order=order)

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """One permutation with the composed order."""
        if match.cancels:
            return _cancelled(match, g)
        return g(aten.permute.default, match.inner.input, list(match.order))


@dataclass(frozen=True)
class CancelNegations(Rule):
    """``-(-x)`` is ``x``, for every value and sign."""

    fidelity = Fidelity.BITWISE
    radius = 1
    starts = "a negation of a negation"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each negated negation."""
        for inner, outer in _pairs(Negation, dirty):
            if same_strides(inner.input, outer.node):
                yield _match(self, inner, outer, True)
            else:
                refusal = Refusal("the original has other strides", inner.input,
                                  f"call contiguous() on what {called(inner.node)} reads")  # fmt: skip
                yield Miss(self.name, outer.node, refusal, (inner.node, outer.node))

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """The value that was negated twice."""
        return _cancelled(match, g)
