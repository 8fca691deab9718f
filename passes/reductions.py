"""Reductions built anew, and what does not vary along the dimensions that they reduce."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

import torch

from rewrite import compat
from rewrite.ops import value
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph
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


def tie_refusal(graph: Graph, old: Reduction, merged: bool = False) -> Refusal | None:
    """Why gradients would go elsewhere where several elements are the extreme, though the value is the same.

    ``max(dim)`` gives all of the gradient to one of them, ``amax`` as much to each. Two extremes in a row, ``merged``
    into one, share it in two steps.
    """
    pair = old.node.target is operator.getitem
    if not graph.differentiated or old.kind not in ("max", "min") or not (pair or merged):
        return None
    remedy = f"call a{old.kind} once, with all dimensions" if merged else f"call a{old.kind} instead"
    return Refusal("where elements tie, other ones would get the gradient", old.node, remedy)


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


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a kernel computes that rounds its result to ``dtype``.

    A rule that takes a kernel apart computes in it: in 16 bits a variance overflows from 256 squared on, and a mean
    loses what is left when another is subtracted from it.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


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
