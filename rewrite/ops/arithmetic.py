"""Sums and products: every spelling of addition, subtraction, negation, multiplication and division by a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, is_tensor, reads, same_type, value, view_as

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Term:
    """``coefficient * node``; ``node`` is None for a plain number."""

    coefficient: float
    node: Node | None


@dataclass(frozen=True)
class Sum(View):
    """A sum of two terms with numbers as coefficients: ``add``, ``sub``, ``rsub``, with ``alpha``."""

    terms: tuple[Term, Term]

    @property
    def operands(self) -> tuple[Node, ...]:
        """The nodes among the terms."""
        return tuple(term.node for term in self.terms if term.node is not None)

    def flatten(self) -> tuple[tuple[Term, ...], tuple[Node, ...]]:
        """The terms of the whole add-tree below this sum, and its inner nodes (this one last).

        An inner sum belongs to the tree when nothing else reads it and it has the same shape and dtype.
        """
        terms: list[Term] = []
        inner: list[Node] = []

        def walk(view: Sum, coefficient: float) -> None:
            for term in view.terms:
                below = view_as(term.node, Sum) or view_as(term.node, Negation)
                if below is not None and len(below.node.users) == 1 and same_type(below.node, self.node):
                    if isinstance(below, Negation):
                        inner.append(below.node)
                        terms.append(Term(-coefficient * term.coefficient, below.input))
                    else:
                        walk(below, coefficient * term.coefficient)
                else:
                    terms.append(Term(coefficient * term.coefficient, term.node))
            inner.append(view.node)

        walk(self, 1.0)
        return tuple(terms), tuple(inner)


def _term(coefficient: Any, operand: Any) -> Term | None:
    if not isinstance(coefficient, (int, float)):
        return None
    if is_tensor(operand):
        return Term(float(coefficient), operand)
    return Term(float(coefficient) * float(operand), None) if isinstance(operand, (int, float)) else None


def _sum(node: Node, first: Term | None, second: Term | None) -> Sum | None:
    if first is None or second is None or not value(node).dtype.is_floating_point:
        return None
    return Sum(node, (first, second))


@reads(aten.add.Tensor, aten.add.Scalar)
def _add(node: Node, a: dict[str, Any]) -> Sum | None:
    return _sum(node, _term(1, a["self"]), _term(a["alpha"], a["other"]))


@reads(aten.sub.Tensor, aten.sub.Scalar)
def _sub(node: Node, a: dict[str, Any]) -> Sum | None:
    alpha = a["alpha"]
    return _sum(node, _term(1, a["self"]), _term(-alpha if isinstance(alpha, (int, float)) else None, a["other"]))


@reads(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(node: Node, a: dict[str, Any]) -> Sum | None:
    alpha = a["alpha"]
    return _sum(node, _term(-alpha if isinstance(alpha, (int, float)) else None, a["self"]), _term(1, a["other"]))


@dataclass(frozen=True)
class Negation(View):
    """``-input``."""

    input: Node


@reads(aten.neg.default)
def _neg(node: Node, a: dict[str, Any]) -> Negation:
    return Negation(node, a["self"])


@dataclass(frozen=True)
class Product(View):
    """``left * right``, where a factor is a node or a number; ``divided`` for ``left / right``."""

    left: Node | float
    right: Node | float
    divided: bool = False


@reads(aten.mul.Tensor, aten.mul.Scalar)
def _mul(node: Node, a: dict[str, Any]) -> Product | None:
    return _product(node, a["self"], a["other"], False)


@reads(aten.div.Tensor, aten.div.Scalar)
def _div(node: Node, a: dict[str, Any]) -> Product | None:
    return _product(node, a["self"], a["other"], True)


def _product(node: Node, left: Any, right: Any, divided: bool) -> Product | None:
    if not all(is_tensor(x) or isinstance(x, (int, float)) for x in (left, right)):
        return None
    return Product(node, left, right, divided)


@dataclass(frozen=True)
class ProductSum(View):
    """``base + coefficient * left * right``."""

    base: Node
    coefficient: float
    left: Node
    right: Node


@reads(aten.addcmul.default)
def _addcmul(node: Node, a: dict[str, Any]) -> ProductSum | None:
    if not isinstance(a["value"], (int, float)) or not value(node).dtype.is_floating_point:
        return None
    return ProductSum(node, a["self"], float(a["value"]), a["tensor1"], a["tensor2"])
