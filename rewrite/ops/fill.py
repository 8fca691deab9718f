"""Tensors of one number in the shape, dtype and place of another tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Fill(View):
    """``number`` everywhere.

    Attributes:
        like: the tensor that gives the dtype and the device, and for some spellings the shape.
    """

    like: Node
    number: float


def _fill(node: Node, like: Node, number: Any) -> Fill | None:
    given, made = value(like), value(node)
    if not isinstance(number, (int, float)) or not made.dtype.is_floating_point:
        return None
    return Fill(node, like, float(number)) if (given.dtype, given.device) == (made.dtype, made.device) else None


@reads(aten.full_like.default, aten.new_full.default)
def _full(node: Node, a: dict[str, Any]) -> Fill | None:
    return _fill(node, a["self"], a["fill_value"])


@reads(aten.zeros_like.default, aten.new_zeros.default)
def _zeros(node: Node, a: dict[str, Any]) -> Fill | None:
    return _fill(node, a["self"], 0)


@reads(aten.ones_like.default, aten.new_ones.default)
def _ones(node: Node, a: dict[str, Any]) -> Fill | None:
    return _fill(node, a["self"], 1)
