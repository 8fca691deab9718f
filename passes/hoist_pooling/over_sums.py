"""A mean or sum of sums, and of values scaled by what does not vary, taken of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from passes import affine, reductions
from passes.hoist_pooling.over_layout import below
from passes.hoist_pooling.plan import Plan, plan
from rewrite.ops import (
    BatchNorm,
    Convolution,
    Linear,
    Negation,
    Permute,
    Product,
    Reduction,
    Reshape,
    Sum,
    Term,
    is_tensor,
    reduction,
    same_shape,
    value,
    view,
    view_as,
)
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

Scaling = Product | Negation | BatchNorm


@dataclass(frozen=True)
class PoolBeforeScale(Rule):
    r"""Take a mean or sum before a factor that does not vary along the reduced dimensions, or an evaluated batch norm.

    .. math:: \mathrm{mean}(a x + s) = a\, \mathrm{mean}(x) + s

    The factor may be a weight or depend on the input, as the gate of a squeeze-and-excitation does. Each rewrite lowers
    the arithmetic: fewer elements are scaled. In 16 bits a batch norm stays, which subtracts before it rounds, and sums
    in float16 stay, which may overflow where the factor is not there yet.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a mean or sum of a scaled value"
    keeps = (Reduction,)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each mean or sum of a scaled value among ``dirty``."""
        for node in dirty:
            pool = _pool(node)
            scaled = None if pool is None else _scaled(graph, pool.input, pool.dims)
            if pool is None or scaled is None or reductions.is_unit(pool.input, pool.dims):
                continue
            view, data = scaled
            nodes = (*view.nodes, *pool.nodes)
            refusal = _overflow(pool) or (_norm_refusal(graph, pool, view) if isinstance(view, BatchNorm) else None)
            if refusal is not None:
                yield Miss(self.name, pool.node, refusal, nodes)
            elif not isinstance(view, BatchNorm) or pool.kind == "mean":
                yield Match(self, nodes, (pool.node,), {"pool": pool, "view": view, "data": data})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The pool, then the factor."""
        pool, found = match.pool, match.view
        result = reductions.reduced(g, pool.kind, match.data, pool.dims, pool.keepdim)
        match found:
            case BatchNorm():
                behind = [dim for dim in range(2, value(pool.input).dim()) if pool.keepdim or dim not in pool.dims]
                channels = [-1, *[1] * len(behind)]
                scale = affine.norm_scale(g, found)
                shift = affine.norm_shift(g, found, scale)
                dtype = value(found.node).dtype
                scale, shift = (
                    g(aten.reshape.default, affine.cast(g, vector, dtype), channels) for vector in (scale, shift)
                )
                result = g(aten.add.Tensor, g(aten.mul.Tensor, result, scale), shift)
            case Negation():
                result = g(aten.neg.default, result)
            case _:
                factor = _fixed(g, pool, found.right if found.left is match.data else found.left)
                result = g(aten.div.Tensor if found.divided else aten.mul.Tensor, result, factor)
        return result


@dataclass(frozen=True)
class PoolBeforeSum(Rule):
    r"""Take a mean or sum of the terms of a sum, where that lets a layer be pooled before it.

    .. math:: \mathrm{mean}(x + y) = \mathrm{mean}(x) + \mathrm{mean}(y)

    One of the terms has to be a layer that :class:`PoolBeforeLayer` takes, as in the last residual block of ConvNeXt
    (Liu et al., 2022). Then the sum is no longer written to memory. Without a layer nothing is gained, for a compiler
    adds as it reduces, and digits may be lost: ``x - 1000`` is exact where ``x`` is near 1000, and the mean of ``x`` is
    rounded. Terms that are broadcast are pooled by themselves. Sums in float16 stay: those of terms may overflow.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a mean or sum of a sum"
    keeps = (Convolution, Linear, Reduction)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each mean or sum of a sum among ``dirty`` that leads to a layer."""
        for node in dirty:
            pool = _pool(node)
            total = None if pool is None else view_as(pool.input, Sum)
            if pool is None or total is None or reductions.is_unit(pool.input, pool.dims):
                continue
            # one sum at a time: what the model adds first, it may have added exactly
            known = [part for part in (_part(pool, term) for term in total.terms) if part is not None]
            if len(known) < len(total.terms) or not _leads_to_layer(graph, pool):
                continue
            nodes, refusal = (total.node, *pool.nodes), _overflow(pool)
            if refusal is not None:
                yield Miss(self.name, pool.node, refusal, nodes)
                continue
            ordered = sorted(known, key=lambda part: not part.whole)
            yield Match(self, nodes, (pool.node,), {"pool": pool, "parts": ordered})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The pooled terms, added."""
        pool = match.pool
        result: Node | None = None
        for part in match.parts:
            if part.node is None:
                assert result is not None  # parts of the sum's shape come first
                result = g(aten.add.Tensor, result, part.coefficient)
                continue
            if part.whole:
                pooled = reductions.reduced(g, pool.kind, part.node, pool.dims, pool.keepdim)
            else:
                pooled = reductions.reduced(g, pool.kind, part.node, part.dims)
            if not (part.whole or pool.keepdim):
                pooled = reductions.without(g, pooled, value(pool.input).dim(), pool.dims)
            result = _added(g, result, pooled, part.coefficient)
        assert result is not None
        return result


def _pool(node: Node) -> Reduction | None:
    found = reduction(node)
    if found is None or found.kind not in ("mean", "sum") or not value(node).dtype.is_floating_point:
        return None
    return found


def _overflow(pool: Reduction) -> Refusal | None:
    """Why a sum stays where it is: what is summed before it is scaled or shifted may be too large for float16."""
    if pool.kind != "sum" or value(pool.node).dtype != torch.float16:
        return None
    return Refusal("the sum of what is not scaled or shifted yet may overflow in float16", pool.node,
                   f"let {called(pool.node)} be a mean, and multiply that by the number of elements")  # fmt: skip


def _norm_refusal(graph: Graph, pool: Reduction, norm: BatchNorm) -> Refusal | None:
    """Why a mean is not taken before a norm."""
    dtype = value(pool.node).dtype
    refusal = affine.norm_refusal(graph, norm)
    if refusal is None and dtype.itemsize == 2:
        return Refusal(f"a mean in {dtype} would be rounded before the norm subtracts from it", norm.node,
                       "put the norm right behind a layer, into which it folds")  # fmt: skip
    return refusal


def _scaled(graph: Graph, node: Node, dims: Sequence[int]) -> tuple[Scaling, Node] | None:
    """What scales a value by something that does not vary along ``dims``, and the data; read by nothing else."""
    found = view(node)
    if not isinstance(found, (Product, Negation, BatchNorm)) or len(node.users) > 1 or graph.is_constant(node):
        return None
    if isinstance(found, Negation):
        return found, found.input
    if isinstance(found, BatchNorm):
        return (found, found.input) if 1 not in dims else None
    for data, factor in ((found.left, found.right), (found.right, found.left)):
        if not isinstance(data, Node) or (found.divided and data is not found.left):
            continue
        if same_shape(data, node) and _same_dtype(data, node) and _is_fixed(factor, node, dims):
            return found, data
    return None


def _fixed(g: Builder, pool: Reduction, factor: Node | float) -> Node | float:
    """A factor that does not vary along the reduced dimensions, in a shape that goes with the result."""
    if not isinstance(factor, Node) or pool.keepdim:
        return factor
    return reductions.without(g, factor, value(pool.input).dim(), pool.dims)


def _is_fixed(factor: Any, like: Node, dims: Sequence[int]) -> bool:
    """Whether a number or tensor leaves a value's dtype as it is and does not vary along ``dims``."""
    if not isinstance(factor, Node):
        return True
    return _same_dtype(factor, like) and reductions.is_invariant(factor, value(like).dim(), dims)


def _same_dtype(a: Node, b: Node) -> bool:
    return is_tensor(a) and value(a).dtype == value(b).dtype


@dataclass(frozen=True)
class _Part:
    """A term of a sum that is pooled.

    Attributes:
        node: the term, None for a number.
        coefficient: what it is multiplied with afterwards, or the number.
        dims: those of its own dimensions that are reduced.
        whole: it has the shape of the sum; otherwise it is broadcast.
    """

    node: Node | None
    coefficient: float
    dims: tuple[int, ...]
    whole: bool


def _part(pool: Reduction, term: Term) -> _Part | None:
    """A term pooled; None where its dtype differs, or a number of elements has to be known and is not."""
    node, missing, own = term.node, 0, list[int]()
    if node is not None:
        if not _same_dtype(node, pool.input):
            return None
        if same_shape(node, pool.input):
            return _Part(node, term.coefficient, pool.dims, True)
        missing = value(pool.input).dim() - value(node).dim()
        own = [dim for dim in pool.dims if dim >= missing and not reductions.is_unit(node, [dim - missing])]
    # where it is broadcast it is the same everywhere: a mean leaves it, a sum takes it as often
    times = reductions.count(pool.input, [dim for dim in pool.dims if dim not in own]) if pool.kind == "sum" else 1
    if times is None:
        return None
    return _Part(node, term.coefficient * times, tuple(dim - missing for dim in own), False)


def _leads_to_layer(graph: Graph, pool: Reduction) -> bool:
    """Whether a term is a layer, scaled or not, that can be pooled before it, and that nothing else reads."""
    stack: list[tuple[Node, Sequence[int] | None]] = [(pool.input, pool.dims)]
    while stack:
        node, dims = stack.pop()
        if not dims or len(node.users) > 1:
            continue
        found = view(node)
        if isinstance(found, (Convolution, Linear)):
            if isinstance(plan(graph, found, pool.kind, dims), Plan):
                return True
        elif isinstance(found, (Permute, Reshape)):
            stack.append((found.input, below(found, dims)))
        elif isinstance(found, Sum):
            stack += [(term, dims) for term in found.operands if same_shape(term, node) and _same_dtype(term, node)]
        else:
            scaled = _scaled(graph, node, dims)
            if scaled is None or (isinstance(scaled[0], BatchNorm) and _norm_refusal(graph, pool, scaled[0])):
                continue
            stack.append((scaled[1], dims))
    return False


def _added(g: Builder, total: Node | None, part: Node, coefficient: float) -> Node:
    if total is None:
        if coefficient == 1:
            return part
        return g(aten.neg.default, part) if coefficient == -1 else g(aten.mul.Tensor, part, coefficient)
    if coefficient != 1:
        return g(aten.add.Tensor, total, part, alpha=coefficient)
    return g(aten.add.Tensor, total, part)
