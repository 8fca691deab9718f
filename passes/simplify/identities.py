"""Operators that move nothing: a reshape to the same shape, a slice of everything, padding by zero, a roll by zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.simplify.removal import Removal
from rewrite import compat
from rewrite.ops import (
    Concatenation,
    Expand,
    Overwrite,
    Pad,
    Permute,
    Piece,
    Reshape,
    Roll,
    Slice,
    value,
)
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.ops import View


@dataclass(frozen=True)
class RemoveIdentity(Removal):
    """Read the input of an operator that moves values in general but none here."""

    fidelity = Fidelity.BITWISE
    starts = "a reshape, slice, padding or roll that moves nothing"

    def source(self, found: View) -> Node | None:
        """The input, or for a slice that is overwritten completely the new values; it may have another shape."""
        match found:
            case Reshape() | Expand() | Piece() | Slice(step=1):
                return found.input
            case Permute():
                return found.input if found.order == tuple(range(len(found.order))) else None
            case Pad():
                return found.input if not any(low or high for low, high in found.amounts) else None
            case Roll():
                return found.input if not any(_moves(found)) else None
            case Concatenation(inputs=(only,)):
                return only
            case Overwrite():
                return found.source
        return None


def _moves(roll: Roll) -> list[bool]:
    shape = value(roll.input).shape
    return [
        not compat.statically_known_true(shift % max(shape[dim], 1) == 0)
        for shift, dim in zip(roll.shifts, roll.dims, strict=True)
    ]
