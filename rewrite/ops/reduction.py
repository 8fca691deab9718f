"""Reductions over whole dimensions: sums, means, extremes, and pooling that leaves one element."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from rewrite import compat
from rewrite.ops.pooling import AveragePool, Resampling
from rewrite.ops.view import View, reads, value, view

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten

Kind = Literal["sum", "mean", "max", "min", "prod", "logsumexp"]


@dataclass(frozen=True)
class Reduction(View):
    """One number out of all elements along some dimensions; ``mean(dim)``, ``amax``, global pooling and the like.

    Attributes:
        input: of the same dtype as the result.
        kind: which number.
        dims: not negative, in ascending order; every dimension where the operator names none.
        keepdim: whether the dimensions stay, with size one.
    """

    input: Node
    kind: Kind
    dims: tuple[int, ...]
    keepdim: bool


def _reduction(node: Node, x: Node, kind: Kind, dims: Any, keepdim: bool) -> Reduction | None:
    if value(x).dtype != value(node).dtype:
        return None
    rank = value(x).dim()
    if dims is None or dims == []:
        dims = range(rank)
    listed = sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims)) if rank else []
    return Reduction(node, x, kind, tuple(listed), keepdim)


@reads(aten.sum.default, aten.sum.dim_IntList)
def _sum(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "sum", a.get("dim"), bool(a.get("keepdim")))


@reads(aten.mean.default, aten.mean.dim)
def _mean(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "mean", a.get("dim"), bool(a.get("keepdim")))


@reads(aten.amax.default, aten.max.default)
def _max(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "max", a.get("dim"), bool(a.get("keepdim")))


@reads(aten.amin.default, aten.min.default)
def _min(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "min", a.get("dim"), bool(a.get("keepdim")))


@reads(aten.max.dim, item=0)
def _max_of_pair(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "max", a["dim"], bool(a["keepdim"]))


@reads(aten.min.dim, item=0)
def _min_of_pair(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "min", a["dim"], bool(a["keepdim"]))


@reads(aten.prod.default, aten.prod.dim_int)
def _prod(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "prod", a.get("dim"), bool(a.get("keepdim")))


@reads(aten.logsumexp.default)
def _logsumexp(node: Node, a: dict[str, Any]) -> Reduction | None:
    return _reduction(node, a["self"], "logsumexp", a["dim"], bool(a["keepdim"]))


@reads(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def _adaptive(node: Node, a: dict[str, Any]) -> Reduction | Resampling | None:
    size = list(a["output_size"])
    if not all(compat.statically_known_true(n == 1) for n in size):
        return Resampling(node, a["self"], "average", len(size))
    rank = value(a["self"]).dim()
    return _reduction(node, a["self"], "mean", list(range(rank - len(size), rank)), True)


def reduction(node: Any) -> Reduction | None:
    """The reduction that a node computes, average pooling whose one window is the whole input among them, or None.

    A function and no registered view, since average pooling over windows has a view of its own.
    """
    found = view(node)
    if not isinstance(found, AveragePool):
        return found if isinstance(found, Reduction) else None
    sizes = value(found.input).shape[-found.dims :]
    covers = all(compat.statically_known_true(n == k) for n, k in zip(sizes, found.kernel, strict=True))
    if not covers or any(found.padding) or found.divisor not in (None, math.prod(found.kernel)):
        return None
    rank = value(found.input).dim()
    return Reduction(found.node, found.input, "mean", tuple(range(rank - found.dims, rank)), True)
