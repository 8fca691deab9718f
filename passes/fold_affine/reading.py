"""Reading nodes as affine maps of each channel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from passes.fold_affine.maps import Base, Factor, Feature, Norm, Shift
from rewrite.ops import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Negation,
    Product,
    ProductSum,
    RMSNorm,
    Sum,
    is_tensor,
    same_shape,
    value,
    view,
    view_as,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewrite.graph import Graph


def read_norm(node: Node) -> Norm | None:
    """The batch norm that a node is."""
    found = view_as(node, BatchNorm)
    return None if found is None else Norm(found, found.input, _of_many(node, (1,)), "the norm")


def read_factor(graph: Graph, node: Node) -> Factor | None:
    """The product of a value with a number or with what varies along some of its dimensions alone.

    What is no constant counts as a factor where it varies along one dimension; a constant is preferred.
    """
    if graph.is_constant(node):
        return None
    found = view(node)
    if isinstance(found, Negation):
        return Factor(found, found.input, (), "the factor", -1.0)
    if not isinstance(found, Product):
        return None
    candidates: list[Factor] = []
    for data, other in ((found.left, found.right), (found.right, found.left)):
        if not isinstance(data, Node) or not _is_mapped(graph, data, node):
            continue
        if isinstance(other, Node):
            dims = varying(other, node)
            if dims is not None and (len(dims) == 1 or graph.is_constant(other)):
                candidates.append(Factor(found, data, dims, "the factor", other, found.divided))
        elif math.isfinite(other) and not (found.divided and (data is not found.left or other == 0)):
            candidates.append(Factor(found, data, (), "the factor", other, found.divided))
    candidates.sort(key=lambda factor: isinstance(factor.factor, Node) and not graph.is_constant(factor.factor))
    return next(iter(candidates), None)


def read_shift(graph: Graph, node: Node) -> Shift | None:
    """The sum of a value with a number or with a constant that varies along some of its dimensions alone."""
    found = view_as(node, Sum)
    if found is None or graph.is_constant(node):
        return None
    for data, other in (found.terms, found.terms[::-1]):
        if data.node is None or not _is_mapped(graph, data.node, node):
            continue
        dims: tuple[int, ...] | None = None
        if other.node is None:
            dims = () if math.isfinite(other.coefficient) else None
        elif graph.is_constant(other.node):
            dims = varying(other.node, node)
        if dims is not None:
            return Shift(found, data.node, dims, "the shift", data.coefficient, other)
    return None


def read_base(graph: Graph, node: Node) -> Base | None:
    """The ``addcmul`` with a constant base that varies along some dimensions alone."""
    found = view_as(node, ProductSum)
    if found is None or graph.is_constant(node) or not graph.is_constant(found.base):
        return None
    factors = [factor for factor in (found.left, found.right) if _is_mapped(graph, factor, node)]
    dims = varying(found.base, node)
    if dims is None or not factors or any(value(factor).dtype != value(node).dtype for factor in factors):
        return None
    return Base(found, factors[0], dims, "the shift")


def read_feature(node: Node) -> Feature | None:
    """The norm over features with weight or bias that a node is."""
    found = view(node)
    if not isinstance(found, (LayerNorm, GroupNorm, InstanceNorm, RMSNorm)):
        return None
    rank = value(node).dim()
    dims = range(rank - len(found.shape), rank) if isinstance(found, (LayerNorm, RMSNorm)) else (1,)
    feature = Feature(found, found.input, _of_many(node, dims), "the norm")
    return feature if feature.parameters else None


def varying(constant: Node, result: Node) -> tuple[int, ...] | None:
    """The dimensions of a result along which an operand varies that is broadcast to it.

    None where its sizes are not known, or where it is broadcast to more than the sizes that it has.
    """
    if not is_tensor(constant):
        return None
    shape: list[Any] = list(value(result).shape)
    sizes: list[Any] = list(value(constant).shape)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or len(sizes) > len(shape):
        return None
    offset = len(shape) - len(sizes)
    dims = [offset + i for i, size in enumerate(sizes) if size != 1]
    known = all(isinstance(shape[dim], int) and shape[dim] == sizes[dim - offset] for dim in dims)
    return tuple(dims) if known else None


def _of_many(node: Node, dims: Iterable[int]) -> tuple[int, ...]:
    """Those of the dimensions that have more than one element."""
    shape: list[Any] = list(value(node).shape)
    return tuple(dim for dim in dims if shape[dim] != 1)


def _is_mapped(graph: Graph, data: Node, result: Node) -> bool:
    """Whether an operand varies with the call and is not broadcast."""
    return is_tensor(data) and not graph.is_constant(data) and same_shape(data, result)
