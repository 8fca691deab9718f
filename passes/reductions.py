"""Reductions built anew, and what does not vary along the dimensions that they reduce."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from rewrite import compat
from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.ops import Reduction

aten = torch.ops.aten

OPERATORS = {
    "sum": aten.sum.dim_IntList, "mean": aten.mean.dim, "max": aten.amax.default, "min": aten.amin.default,
    "logsumexp": aten.logsumexp.default,
}  # fmt: skip
"""The operator of each kind of reduction that takes any number of dimensions."""


def reads_indices(old: Reduction) -> bool:
    """Whether somebody reads where the extremes are, which ``max(dim)`` tells besides."""
    return any(user is not old.node for node in old.nodes[:-1] for user in node.users)


def reduced(g: Builder, kind: str, x: Node, dims: Sequence[int], keepdim: bool = True) -> Node:
    """``x`` reduced along ``dims``; itself where there are none."""
    return g(OPERATORS[kind], x, list(dims), keepdim) if dims else x


def finished(g: Builder, result: Node, old: Reduction) -> Node:
    """A result that has all reduced dimensions, with size one, in the shape of ``old``."""
    if old.keepdim or not old.dims:
        return result
    return g(aten.squeeze.dims, result, list(old.dims))


def without(g: Builder, node: Node, rank: int, dims: Sequence[int]) -> Node:
    """A value that does not vary along ``dims`` of ``rank`` dimensions, without those that it has."""
    missing = rank - value(node).dim()
    present = [dim - missing for dim in dims if dim >= missing]
    return g(aten.squeeze.dims, node, present) if present else node


def count(node: Node, dims: Sequence[int]) -> int | None:
    """How many elements each number of a reduction comes from; None where that varies."""
    sizes = [value(node).shape[dim] for dim in dims]
    return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else None


def is_unit(node: Node, dims: Sequence[int]) -> bool:
    """Whether all of these dimensions certainly have size one."""
    return all(compat.statically_known_true(value(node).shape[dim] == 1) for dim in dims)


def is_invariant(node: Node, rank: int, dims: Sequence[int]) -> bool:
    """Whether a value, broadcast to ``rank`` dimensions, certainly is the same all along ``dims``."""
    missing = rank - value(node).dim()
    return missing >= 0 and is_unit(node, [dim - missing for dim in dims if dim >= missing])
