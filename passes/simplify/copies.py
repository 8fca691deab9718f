"""Copies that nobody needs: ``clone``, dropout in evaluation, conversions to the dtype that a value has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.convert_layout import is_conversion
from passes.simplify.removal import Removal
from rewrite.ops import Cast, Copy
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.ops import View


@dataclass(frozen=True)
class RemoveCopy(Removal):
    """Read the original in place of its copy.

    A copy that changes the layout stays, except before reshapes that copy anyway. So does one that keeps an output
    apart from an input, a weight or another output.
    """

    fidelity = Fidelity.BITWISE
    starts = "a copy, dropout in evaluation, or a conversion to the same dtype"

    def source(self, found: View) -> Node | None:
        """The copied tensor; None for what is there for its layout."""
        if is_conversion(found.node):
            return None
        return found.input if isinstance(found, (Copy, Cast)) else None
