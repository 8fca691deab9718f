"""Operators that move or copy values without computing: reshapes, permutations, copies, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, is_tensor, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Reshape(View):
    """The same elements in order under another shape; all spellings, ``squeeze`` and ``unsqueeze`` among them.

    Attributes:
        shape: sizes as ``reshape`` takes them: numbers or nodes, at most one of them -1.
    """

    input: Node
    shape: tuple[Any, ...]


@reads(aten.reshape.default, aten.view.default, aten._unsafe_view.default)
def _reshape(node: Node, a: dict[str, Any]) -> Reshape:
    return Reshape(node, a["self"], tuple(a["shape" if "shape" in a else "size"]))


@reads(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(node: Node, a: dict[str, Any]) -> Reshape | None:
    sizes: list[Any] = list(value(a["self"]).shape)
    dims = a.get("dim", range(len(sizes)))
    # a symbolic size may turn out to be one, and then its dimension goes
    if sizes and any(not isinstance(sizes[dim], int) for dim in ([dims] if isinstance(dims, int) else dims)):
        return None
    return _resized(node, a)


@reads(aten.unsqueeze.default, aten.flatten.using_ints, aten.unflatten.int)
def _resized(node: Node, a: dict[str, Any]) -> Reshape | None:
    sizes: list[Any] = list(value(node).shape)
    symbolic = sum(not isinstance(size, int) for size in sizes)
    # -1 is ambiguous beside a zero
    if symbolic > 1 or (symbolic == 1 and any(size == 0 for size in sizes if isinstance(size, int))):
        return None
    return Reshape(node, a["self"], tuple(size if isinstance(size, int) else -1 for size in sizes))


@dataclass(frozen=True)
class Permute(View):
    """``order[i]`` is the dimension of the input that becomes dimension ``i``; all spellings of a transposition."""

    input: Node
    order: tuple[int, ...]


@reads(aten.permute.default)
def _permute(node: Node, a: dict[str, Any]) -> Permute:
    rank = value(a["self"]).dim()
    return Permute(node, a["self"], tuple(d % rank for d in a["dims"]))


@reads(aten.transpose.int)
def _transpose(node: Node, a: dict[str, Any]) -> Permute | None:
    rank = value(a["self"]).dim()
    if rank == 0:
        return None
    order = list(range(rank))
    i, j = a["dim0"] % rank, a["dim1"] % rank
    order[i], order[j] = order[j], order[i]
    return Permute(node, a["self"], tuple(order))


@reads(aten.t.default)
def _t(node: Node, a: dict[str, Any]) -> Permute:
    return Permute(node, a["self"], tuple(reversed(range(value(a["self"]).dim()))))


@dataclass(frozen=True)
class Copy(View):
    """A fresh tensor of the same values. ``layout`` is the memory format asked for, None to keep the input's."""

    input: Node
    layout: torch.memory_format | None


@reads(aten.clone.default)
def _clone(node: Node, a: dict[str, Any]) -> Copy:
    return Copy(node, a["self"], _layout(a))


def _layout(a: dict[str, Any]) -> torch.memory_format | None:
    layout = a.get("memory_format")
    return layout if isinstance(layout, torch.memory_format) and layout is not torch.preserve_format else None


@reads(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def _dropout(node: Node, a: dict[str, Any]) -> Copy | None:
    return None if a["train"] else Copy(node, a["input"], None)


@dataclass(frozen=True)
class Cast(View):
    """The same values in another dtype or on another device; ``layout`` as in :class:`Copy`."""

    input: Node
    dtype: torch.dtype
    layout: torch.memory_format | None = None


@reads(aten._to_copy.default, aten.to.other, aten.to.dtype, aten.to.dtype_layout, aten.to.device)
def _cast(node: Node, a: dict[str, Any]) -> Cast | None:
    return Cast(node, a["self"], value(node).dtype, _layout(a)) if is_tensor(a["self"]) else None


@dataclass(frozen=True)
class Pad(View):
    """Padding of trailing dimensions.

    Attributes:
        amounts: ``(low, high)`` from the first to the last padded dimension (the reverse of torch's order).
        mode: ``"constant"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        fill: the constant.
    """

    input: Node
    amounts: tuple[tuple[int, int], ...]
    mode: str
    fill: float


@reads(aten.pad.default)
def _pad(node: Node, a: dict[str, Any]) -> Pad | None:
    return _padding(node, a["self"], a["pad"], a["mode"], a["value"])


@reads(aten.constant_pad_nd.default)
def _constant_pad(node: Node, a: dict[str, Any]) -> Pad | None:
    return _padding(node, a["self"], a["pad"], "constant", a["value"])


def _padding(node: Node, x: Node, flat: Any, mode: str, fill: Any) -> Pad | None:
    if not all(isinstance(amount, int) for amount in flat):
        return None
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    return Pad(node, x, tuple(reversed(pairs)), mode, float(fill or 0))
