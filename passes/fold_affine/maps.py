r"""Affine maps of each channel with constant coefficients, as they stand in a graph.

.. math:: y_c = a_c x_c + s_c

A batch norm in evaluation, a product or quotient with a constant, a negation, a sum with a constant, and what a norm
over features does after it has normalised are all such maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from passes import affine
from rewrite.ops import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Product,
    ProductSum,
    RMSNorm,
    Term,
    View,
    arguments,
    value,
)
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

Vector = Node | float
"""A number, or a constant with the sizes of :attr:`Map.dims`."""


@dataclass(frozen=True)
class Map:
    """An affine map of each channel.

    Attributes:
        view: the operator.
        input: what is mapped; of the result's shape.
        dims: the dimensions of the result along which the coefficients vary, in ascending order; none for numbers.
        what: in words: "the norm".
    """

    view: View
    input: Node
    dims: tuple[int, ...]
    what: str

    @property
    def node(self) -> Node:
        """The node whose value is the result."""
        return self.view.node

    @property
    def scales(self) -> bool:
        """Whether there is a scale."""
        return True

    @property
    def shifts(self) -> bool:
        """Whether there is a shift."""
        return True

    @property
    def numbers(self) -> tuple[float, float] | None:
        """Scale and shift, where both are plain numbers."""
        return None

    @property
    def size(self) -> int:
        """How many coefficients there are."""
        return math.prod(int(value(self.node).shape[dim]) for dim in self.dims)

    def refusal(self, graph: Graph) -> Refusal | None:
        """Why the coefficients are no constants of the result's dtype, or None where they are."""
        given, made = value(self.input).dtype, value(self.node).dtype
        if given == made:
            return None
        return Refusal(f"the {self.operation} turns {given} into {made}", self.node,
                       f"convert {self.what} to {given}")  # fmt: skip

    @property
    def operation(self) -> str:
        """What it computes, in a word."""
        raise NotImplementedError

    def coefficients(self, g: Builder) -> tuple[Vector | None, Vector | None]:
        """Scale and shift; None for one and zero."""
        raise NotImplementedError

    def rest(self, g: Builder) -> Node:
        """What stays in its place when both are gone."""
        return self.input


@dataclass(frozen=True)
class Norm(Map):
    """A batch norm in evaluation."""

    view: BatchNorm

    def refusal(self, graph: Graph) -> Refusal | None:
        """Why it is none, or not constant."""
        return affine.norm_refusal(graph, self.view)

    def coefficients(self, g: Builder) -> tuple[Vector | None, Vector | None]:
        """Both, from statistics and parameters."""
        scale = affine.norm_scale(g, self.view)
        shift = affine.norm_shift(g, self.view, scale)
        return (scale, shift) if self.dims else (_along(g, scale, ()), _along(g, shift, ()))


@dataclass(frozen=True)
class Factor(Map):
    """A product or quotient with a constant, or a negation."""

    factor: Node | float = 1.0
    divided: bool = False

    @property
    def shifts(self) -> bool:
        """Whether there is a shift."""
        return False

    @property
    def operation(self) -> str:
        """What it computes."""
        return "product"

    def refusal(self, graph: Graph) -> Refusal | None:
        """Why the factor is not a constant that multiplies."""
        if isinstance(self.factor, Node) and not graph.is_constant(self.factor):
            return affine.varying(graph, self.factor, self.what)
        if self.divided and isinstance(self.view, Product) and self.factor is self.view.left:
            return Refusal("the factor is divided by the layer", self.node, "divide the layer by the factor")
        return super().refusal(graph)

    def coefficients(self, g: Builder) -> tuple[Vector | None, Vector | None]:
        """The factor."""
        if self.numbers is not None:
            return self.numbers[0], None
        assert isinstance(self.factor, Node)
        scale = _along(g, self.factor, self.dims)
        return (g(aten.reciprocal.default, scale) if self.divided else scale), None

    @property
    def numbers(self) -> tuple[float, float] | None:
        """The factor, where it is a plain number."""
        if isinstance(self.factor, Node):
            return None
        return (1 / self.factor if self.divided else self.factor), 0.0


@dataclass(frozen=True)
class Shift(Map):
    """A sum of a value and a constant, each with a number as coefficient."""

    coefficient: float
    constant: Term

    @property
    def scales(self) -> bool:
        """Whether the value has a coefficient."""
        return self.coefficient != 1

    @property
    def numbers(self) -> tuple[float, float] | None:
        """The coefficient and the constant, where that is a plain number."""
        return (self.coefficient, self.constant.coefficient) if self.constant.node is None else None

    @property
    def operation(self) -> str:
        """What it computes."""
        return "sum"

    def coefficients(self, g: Builder) -> tuple[Vector | None, Vector | None]:
        """The coefficient of the value, and the constant with its own."""
        scale = None if self.coefficient == 1 else self.coefficient
        if self.constant.node is None:
            return scale, self.constant.coefficient
        shift = _along(g, self.constant.node, self.dims)
        if self.constant.coefficient != 1:
            shift = g(aten.mul.Tensor, shift, self.constant.coefficient)
        return scale, shift


@dataclass(frozen=True)
class Base(Map):
    """The constant to which ``addcmul`` adds a product, which stays."""

    view: ProductSum

    @property
    def scales(self) -> bool:
        """Whether there is a scale."""
        return False

    @property
    def operation(self) -> str:
        """What it computes."""
        return "sum"

    def coefficients(self, g: Builder) -> tuple[Vector | None, Vector | None]:
        """The constant."""
        return None, _along(g, self.view.base, self.dims)

    def rest(self, g: Builder) -> Node:
        """The product."""
        product = g(aten.mul.Tensor, self.view.left, self.view.right)
        return product if self.view.coefficient == 1 else g(aten.mul.Tensor, product, self.view.coefficient)


@dataclass(frozen=True)
class Feature(Map):
    """Weight and bias of a norm over features; the normalisation stays."""

    view: LayerNorm | GroupNorm | InstanceNorm | RMSNorm

    @property
    def parameters(self) -> dict[str, Node]:
        """Weight and bias, as far as there are such."""
        found = {name: getattr(self.view, name, None) for name in ("weight", "bias")}
        return {name: node for name, node in found.items() if node is not None}

    @property
    def scales(self) -> bool:
        """Whether it has a weight."""
        return "weight" in self.parameters

    @property
    def shifts(self) -> bool:
        """Whether it has a bias."""
        return "bias" in self.parameters

    @property
    def operation(self) -> str:
        """What it computes."""
        return "norm"

    def refusal(self, graph: Graph) -> Refusal | None:
        """Why its parameters are not constant."""
        for name, node in self.parameters.items():
            if not graph.is_constant(node):
                return affine.varying(graph, node, f"the norm's {name}")
        return super().refusal(graph)

    def coefficients(self, g: Builder) -> tuple[Vector | None, Vector | None]:
        """Weight and bias."""
        found = {name: _along(g, node, self.dims) for name, node in self.parameters.items()}
        return found.get("weight"), found.get("bias")

    def rest(self, g: Builder) -> Node:
        """The norm without them."""
        return g(self.node.target, *{**arguments(self.node), **dict.fromkeys(self.parameters)}.values())


def _along(g: Builder, constant: Node, dims: Sequence[int]) -> Node:
    """A constant that is broadcast, with the sizes of some dimensions alone."""
    shape = [int(size) for size in value(constant).shape]
    if len(dims) == 1:
        return constant if len(shape) == 1 else g(aten.reshape.default, constant, [-1])
    sizes = [size for size in shape if size != 1]
    return constant if shape == sizes else g(aten.reshape.default, constant, sizes)
