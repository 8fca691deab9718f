"""Means of what a group norm gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from passes import affine, reductions
from passes.reduction_algebra.fills import filled, source_of
from rewrite.ops import GroupNorm, Reduction, reduction, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


class _MeanOfGroupNorm(Rule, abstract=True):
    """The common part: a mean over at least all channels and positions of a group norm."""

    fidelity = Fidelity.ELEMENTWISE
    starts = "a mean over all channels and positions of a group norm"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each such mean among ``dirty``."""
        for node in dirty:
            pool = reduction(node)
            norm = None if pool is None or pool.kind != "mean" else view_as(pool.input, GroupNorm)
            if pool is None or norm is None or not set(pool.dims) >= set(range(1, value(norm.node).dim())):
                continue
            sizes: Sequence[Any] = value(norm.node).shape[1:]
            if not all(isinstance(size, int) and size > 0 for size in sizes):
                continue
            found = self._look(graph, pool, norm)
            if found is not None:
                yield found

    def _look(self, graph: Graph, pool: Reduction, norm: GroupNorm) -> Match | Miss | None:
        raise NotImplementedError


@dataclass(frozen=True)
class MeanOfGroupNorm(_MeanOfGroupNorm):
    r"""Compute the mean of a group norm from means and variances, so that the normed image is never written.

    .. math:: \frac{1}{CS} \sum_{cs} \Big(\gamma_c \frac{x_{cs} - \mu_{g(c)}}{\sigma_{g(c)}} + \beta_c\Big)
        = \bar\beta + \frac{1}{C} \sum_g \frac{1}{\sigma_g} \sum_{c \in g} \gamma_c (m_c - \mu_g)

    with the means :math:`m_c` of the channels. It depends on the input through the channels' means alone, weighted by
    their unequal :math:`\gamma_c`; where these are equal, :class:`MeanOfUniformGroupNorm` may be named before this.
    Lowers the bytes written.
    """

    def _look(self, graph: Graph, pool: Reduction, norm: GroupNorm) -> Match | Miss | None:
        if norm.weight is None:  # its mean is known, and what would be computed of means is their rounding alone
            found = MeanOfUniformGroupNorm()._look(graph, pool, norm)
            assert isinstance(found, Miss)
            return replace(found, rule=self.name)
        return Match(self, (norm.node, *pool.nodes), (pool.node,), {"pool": pool, "norm": norm})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The mean of the norm."""
        norm, pool = match.norm, match.pool
        channels, *sizes = (int(n) for n in value(norm.node).shape[1:])
        rank, grouped = value(norm.node).dim(), [norm.groups, channels // norm.groups]
        made = value(norm.node).dtype
        wide = reductions.wide(made)
        options = {} if wide == made else {"dtype": wide}
        parts = g(aten.unflatten.int, norm.input, 1, grouped)  # [N, G, C / G, *size]
        dims = list(range(3, rank + 1))
        means = g(aten.mean.dim, parts, dims, **options) if sizes else affine.cast(g, parts, wide)
        centre = g(aten.mean.dim, means, [2], True)
        # no deviation overflows, as a variance does
        deviation = affine.cast(g, g(aten.std.correction, parts, list(range(2, rank + 1)), correction=0), wide)
        spread = g(aten.mul.Tensor, deviation, deviation)
        gamma = g(aten.reshape.default, norm.weight, grouped)
        weighted = g(aten.sum.dim_IntList, g(aten.mul.Tensor, g(aten.sub.Tensor, means, centre), gamma), [2])
        scaled = g(aten.mul.Tensor, weighted, g(aten.rsqrt.default, g(aten.add.Tensor, spread, norm.eps)))
        result = g(aten.div.Tensor, g(aten.sum.dim_IntList, scaled, [1]), channels)
        if norm.bias is not None:
            result = g(aten.add.Tensor, result, g(aten.mean.default, norm.bias))
        return _shaped(g, affine.cast(g, result, made), pool)


@dataclass(frozen=True)
class MeanOfUniformGroupNorm(_MeanOfGroupNorm):
    r"""The mean of a group norm whose scale is the same for all channels of a group is the mean of its shift.

    .. math:: \frac{1}{CS} \sum_{cs} (\gamma_{g(c)} \hat x_{cs} + \beta_c) = \bar\beta
        \quad\text{as}\quad \sum_{c \in g,\,s} \hat x_{cs} = 0

    Nothing of the input is left in it, so what it was computed from is dropped, a layer and all that is before it
    perhaps. NaN and infinities are dropped too: it is done where it is asked for only, and for the present values of
    the scale.
    """

    finite: bool = False

    reads_values = True

    def _look(self, graph: Graph, pool: Reduction, norm: GroupNorm) -> Match | Miss | None:
        nodes = (norm.node, *pool.nodes)
        source = source_of(graph, pool.node)
        refusal = self._refusal(graph, norm) or (source if isinstance(source, Refusal) else None)
        if refusal is None and not reductions.count(pool.input, pool.dims):
            refusal = Refusal("it is NaN for a batch of none, of which it takes the mean", pool.node,
                              "leave the batch out of the mean")  # fmt: skip
        if refusal is None and not self.finite:
            refusal = Refusal("it does not depend on what it is computed from where that is finite", norm.node,
                              f"name '{self.name}{{finite=True}}' in the pipeline where inputs are finite")  # fmt: skip
        if refusal is not None:
            return Miss(self.name, pool.node, refusal, nodes)
        shared = any(user not in pool.nodes for user in norm.node.users)
        outputs = (norm.node, pool.node) if shared else (pool.node,)
        return Match(self, nodes, outputs, {"norm": norm, "source": source, "shared": shared})

    def _refusal(self, graph: Graph, norm: GroupNorm) -> Refusal | None:
        for parameter, what in ((norm.weight, "the norm's weight"), (norm.bias, "the norm's bias")):
            if parameter is not None and not graph.is_constant(parameter):
                return affine.varying(graph, parameter, what)
        if norm.weight is not None:
            scale = graph.value(norm.weight).reshape(norm.groups, -1)
            if not bool((scale == scale[:, :1]).all()):
                return Refusal(
                    "the norm's weight varies within a group", norm.weight, "build the norm with affine=False"
                )
        return None

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """The mean of the shift, for each row of the batch."""
        result = filled(g, match.source, 0.0)
        if match.norm.bias is not None:
            beta = affine.cast(g, g(aten.mean.default, match.norm.bias), value(match.norm.node).dtype)
            result = g(aten.add.Tensor, result, beta)
        return (g.keep(match.norm.node), result) if match.shared else result


def _shaped(g: Builder, result: Node, pool: Reduction) -> Node:
    """A number for each row of the batch in the shape of the pool, whose rest is reduced."""
    if 0 in pool.dims:
        result = g(aten.mean.dim, result, [0])
    if not pool.keepdim:
        return result
    rank = value(pool.input).dim()
    return g(aten.reshape.default, result, [1 if 0 in pool.dims else -1, *[1] * (rank - 1)])
