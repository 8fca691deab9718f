"""A reduction of a reshaped or permuted value, taken of the value itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes import reductions
from rewrite import compat
from rewrite.ops import Permute, Reduction, Reshape, reduction, value, view
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class PoolBeforeLayout(Rule):
    """Reduce before a reshape or permutation: ``x.flatten(2).mean(-1)`` is ``x.mean((2, 3))``.

    What is left of the dimensions is permuted afterwards where it has to be: fewer elements.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a reduction of a reshaped or permuted value"
    keeps = (Reduction,)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each such reduction among ``dirty`` of a value that nothing else reads."""
        for node in dirty:
            old = reduction(node)
            if old is None or old.kind not in reductions.OPERATORS or reductions.reads_indices(old):
                continue
            layout = view(old.input)
            if not isinstance(layout, (Reshape, Permute)) or len(layout.node.users) > 1:
                continue
            dims = below(layout, old.dims)
            if dims and not reductions.is_unit(layout.input, dims):
                refusal = reductions.tie_refusal(graph, old)
                if refusal is not None:
                    yield Miss(self.name, node, refusal, (layout.node, *old.nodes))
                    continue
                captures = {"old": old, "layout": layout, "dims": dims}
                yield Match(self, (layout.node, *old.nodes), (old.node,), captures)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The reduction along the dimensions that become those of before."""
        old, layout, dims = match.old, match.layout, match.dims
        result = reductions.reduced(g, old.kind, layout.input, dims, keepdim=False)
        if isinstance(layout, Permute):
            left = [source for dim, source in enumerate(layout.order) if dim not in old.dims]
            order = [sorted(left).index(source) for source in left]
            if order != sorted(order):
                result = g(aten.permute.default, result, order)
        for dim in old.dims if old.keepdim else ():
            result = g(aten.unsqueeze.default, result, dim)
        return result


def below(layout: Reshape | Permute, dims: Sequence[int]) -> list[int] | None:
    """The dimensions before a reshape or permutation that make up ``dims``, where it leaves the others as they are."""
    if isinstance(layout, Permute):
        return sorted(layout.order[dim] for dim in dims)
    before, after = value(layout.input).shape, value(layout.node).shape
    found: list[int] = []
    for sources, results in _groups(before, after):
        reduced = [result in dims for result in results]
        if reduced and not any(reduced):
            if not _same([before[dim] for dim in sources], [after[dim] for dim in results]):
                return None
        elif all(reduced):  # dimensions of size one that the reshape takes away among them
            found += sources
        else:
            return None
    return found


def _groups(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[range, range]]:
    """The shortest runs of dimensions of both shapes with equally many elements; one of all where that is not known."""
    found: list[tuple[range, range]] = []
    start, begin = 0, 0
    while start < len(before) or begin < len(after):
        end, stop = min(start + 1, len(before)), min(begin + 1, len(after))
        while not _same([left := math.prod(before[start:end])], [right := math.prod(after[begin:stop])]):
            if compat.statically_known_true(left < right) and end < len(before):
                end += 1
            elif compat.statically_known_true(right < left) and stop < len(after):
                stop += 1
            else:
                return [(range(len(before)), range(len(after)))]
        found.append((range(start, end), range(begin, stop)))
        start, begin = end, stop
    return found


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(compat.statically_known_true(m == n) for m, n in zip(a, b, strict=True))
