"""Reductions of reductions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes import reductions
from rewrite.ops import AveragePool, Reduction, reduction, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeReductions(Rule):
    r"""Two reductions of one kind in a row are one: sums, means, maxima, minima, ``logsumexp``.

    .. math:: \frac{1}{m} \sum_i \frac{1}{n} \sum_j x_{ij} = \frac{1}{mn} \sum_{ij} x_{ij}

    Every inner mean is one of equally many elements, whatever the sizes. So is average pooling before a mean, where its
    windows tile the input; windows that overlap, hang over the end or leave a rest are refused. So are extremes where
    gradients are taken: elements that tie would share them otherwise.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a reduction of a reduction"
    keeps = (Reduction,)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each reduction of a reduction or of average pooling among ``dirty``."""
        for node in dirty:
            outer = reduction(node)
            if outer is None or outer.kind not in reductions.OPERATORS or reductions.reads_indices(outer):
                continue
            inner = reduction(outer.input)
            pool = view_as(outer.input, AveragePool) if inner is None and outer.kind == "mean" else None
            if inner is not None and inner.kind == outer.kind and not reductions.reads_indices(inner):
                refusal = reductions.tie_refusal(graph, outer, merged=True)
                nodes = (*inner.nodes, *outer.nodes)
                yield self._merged(outer, inner) if refusal is None else Miss(self.name, node, refusal, nodes)
            elif pool is not None and set(outer.dims) >= set(_pooled(pool)):
                yield self._tiled(outer, pool)

    def _merged(self, outer: Reduction, inner: Reduction) -> Match:
        nodes = (*inner.nodes, *outer.nodes)
        rank = value(inner.input).dim()
        left = list(range(rank)) if inner.keepdim else [dim for dim in range(rank) if dim not in inner.dims]
        again = {left[dim] for dim in outer.dims}
        dims = sorted({*inner.dims, *again})
        lost = (set() if outer.keepdim else again) | (set() if inner.keepdim else set(inner.dims))
        gone = [dim for dim in dims if dim in lost]
        captures = {"kind": outer.kind, "x": inner.input, "dims": dims, "gone": gone}
        return Match(self, nodes, (outer.node,), captures)

    def _tiled(self, outer: Reduction, pool: AveragePool) -> Match | Miss:
        nodes = (pool.node, *outer.nodes)
        refusal = _tiling_refusal(pool)
        if refusal is not None:
            return Miss(self.name, outer.node, refusal, nodes)
        captures = {"kind": "mean", "x": pool.input, "dims": list(outer.dims)}
        return Match(self, nodes, (outer.node,), {**captures, "gone": [] if outer.keepdim else list(outer.dims)})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """One reduction, and a squeeze where only some of its dimensions stay."""
        whole = match.gone == match.dims
        result = reductions.reduced(g, match.kind, match.x, match.dims, keepdim=not whole)
        return result if whole or not match.gone else g(aten.squeeze.dims, result, match.gone)


def _pooled(pool: AveragePool) -> list[int]:
    """The dimensions with windows of more than one element."""
    first = value(pool.input).dim() - pool.dims
    return [first + axis for axis, kernel in enumerate(pool.kernel) if (kernel, pool.stride[axis]) != (1, 1)]


def _tiling_refusal(pool: AveragePool) -> Refusal | None:
    """Why not every element is in exactly one window."""
    sizes: Sequence[Any] = value(pool.input).shape[-pool.dims :]
    if pool.kernel != pool.stride or any(pool.padding):
        return Refusal("the windows of the pool overlap, leave gaps or hang over the border", pool.node,
                       "use a stride equal to the kernel and no padding, or leave the pool out")  # fmt: skip
    if not all(isinstance(size, int) and size % kernel == 0 for size, kernel in zip(sizes, pool.kernel, strict=True)):
        return Refusal("the windows of the pool do not tile its input", pool.node,
                       "use a kernel that divides the size, or leave the pool out")  # fmt: skip
    if pool.divisor not in (None, math.prod(pool.kernel)):
        return Refusal("the divisor of the pool is not the size of its window", pool.node, "leave divisor_override out")
    return None
