"""Arithmetic with the neutral element: multiplication and division by one, addition of zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from passes.simplify.removal import Removal
from rewrite.ops import Product, Sum, value
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from rewrite.ops import View


@dataclass(frozen=True)
class RemoveNeutral(Removal):
    """``x * 1``, ``1 * x``, ``x / 1``, ``x - 0`` and ``x + (-0.0)`` are ``x`` to the bit, for every ``x``.

    Only plain numbers count as neutral. Complex products are left alone: ``(a + bi) * 1`` computes ``b * 0`` too,
    which is not zero for an infinite ``b``.
    """

    fidelity = Fidelity.BITWISE
    starts = "a product or quotient with one, or a sum with minus zero"

    def source(self, found: View) -> Node | None:
        """The other operand."""
        if isinstance(found, Product):
            return None if value(found.node).dtype.is_complex else _factor(found)
        return _summand(found, -1.0) if isinstance(found, Sum) else None


@dataclass(frozen=True)
class RemoveZeroTerm(Removal):
    """``x + 0`` is ``x``, with which Python's ``sum`` begins. Not to the bit, because ``-0.0 + 0`` is ``0.0``."""

    fidelity = Fidelity.ELEMENTWISE
    starts = "a sum with zero"

    def source(self, found: View) -> Node | None:
        """The other term."""
        return _summand(found, 1.0) if isinstance(found, Sum) else None


def _factor(product: Product) -> Node | None:
    left, right = product.left, product.right
    factor = left if right == 1 else right if left == 1 and not product.divided else None
    return factor if isinstance(factor, Node) else None


def _summand(total: Sum, sign: float) -> Node | None:
    """The term beside a zero of this sign, where its coefficient is one."""
    for term, other in (total.terms, total.terms[::-1]):
        if other.node is None and other.coefficient == 0 and math.copysign(1.0, other.coefficient) == sign:
            return term.node if term.coefficient == 1 else None
    return None
