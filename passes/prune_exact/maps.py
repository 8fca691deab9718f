"""Steps that compute with parameters, or with other values: norms, depthwise convolutions, sums and products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from passes import affine
from passes.prune_exact.alike import Alike, collinear, grouped
from passes.prune_exact.steps import UNKNOWN, Step, placed, replay
from rewrite.ops import BatchNorm, Convolution, Product, Sum, arguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.fx import Node

    from passes.prune_exact.select import Picker
    from passes.prune_exact.weights import Weights

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Norm(Step):
    """An evaluated batch norm."""

    view: BatchNorm

    @property
    def weights(self) -> tuple[Node, ...]:
        """Those that the norm has."""
        norm = self.view
        return tuple(node for node in (norm.weight, norm.bias, norm.mean, norm.var) if node is not None)

    def _map(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """Scale and shift in float64."""
        norm = self.view
        assert norm.mean is not None
        assert norm.var is not None
        scale = (weights.number(norm.var) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * weights.number(norm.weight)
        shift = -weights.number(norm.mean) * scale
        return scale, shift if norm.bias is None else shift + weights.number(norm.bias)

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The map of the constants; the shift where the scale is zero."""
        scale, shift = self._map(weights)
        return torch.where(scale == 0, shift, given[0] * scale + shift)

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Multiples with multiples of the same scale and shift."""
        scale, shift = self._map(weights)
        return collinear(given[0].root.tolist(), torch.stack([given[0].factor * scale, shift], 1))

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The map of the constants."""
        scale = affine.norm_scale(g.g, self.view)
        shift = affine.norm_shift(g.g, self.view, scale)
        scaled = g(aten.mul.Tensor, given[0], g.select(scale, 0, channels))
        return g(aten.add.Tensor, scaled, g.select(shift, 0, channels))

    def ratio(self, g: Picker, given: Sequence[Node], channels: Sequence[int], roots: Sequence[int]) -> Node:
        """Times the factors between the scales."""
        scale = affine.norm_scale(g.g, self.view)
        change = g(aten.div.Tensor, g.pick(scale, 0, channels), g.pick(scale, 0, roots))
        return g(aten.mul.Tensor, given[0], change)

    def narrow(self, g: Picker, new: Mapping[Node, Node], kept: Mapping[Node, Sequence[int]]) -> Node:
        """With the parameters of the channels that are kept."""
        parameters = {node: g.select(node, 0, kept[self.node]) for node in self.weights}
        return replay(g, self.view.nodes, {**new, **parameters})


@dataclass(frozen=True, eq=False)
class Depthwise(Step):
    """A convolution with a kernel of its own for each channel."""

    view: Convolution

    @property
    def weights(self) -> tuple[Node, ...]:
        """Kernel and bias."""
        return tuple(node for node in (self.view.weight, self.view.bias) if node is not None)

    @property
    def _pads(self) -> bool:
        return any(amount for pair in self.view.padding for amount in pair)

    def _map(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """The kernels, ``[C, taps]``, and the biases in float64."""
        kernel = weights.number(self.view.weight).flatten(1)
        bias = (
            torch.zeros(len(kernel), dtype=torch.float64) if self.view.bias is None else weights.number(self.view.bias)
        )
        return kernel, bias

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The bias and the sum of the kernel times the constant; at a border of zeros only where this is zero too."""
        kernel, bias = self._map(weights)
        result = given[0] * kernel.sum(1) + bias
        if self._pads:
            result = torch.where(given[0] == 0, bias, UNKNOWN)
        return torch.where((kernel == 0).all(1), bias, result)

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Multiples with multiples of the same kernel and bias."""
        kernel, bias = self._map(weights)
        rows = torch.cat([given[0].factor[:, None] * kernel, bias[:, None]], 1)
        return collinear(given[0].root.tolist(), rows)

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The bias and the sum of the kernel times the constant."""
        kernel = g.select(self.view.weight, 0, channels)
        taps = g(aten.sum.dim_IntList, kernel, list(range(1, self.view.dims + 2)))
        product = g(aten.mul.Tensor, taps, given[0])
        if self.view.bias is None:
            return product
        return g(aten.add.Tensor, product, g.select(self.view.bias, 0, channels))

    def ratio(self, g: Picker, given: Sequence[Node], channels: Sequence[int], roots: Sequence[int]) -> Node:
        """Times the factors between the kernels."""
        return g(aten.mul.Tensor, given[0], g.row_ratio(self.view.weight, 0, channels, roots))

    def narrow(self, g: Picker, new: Mapping[Node, Node], kept: Mapping[Node, Sequence[int]]) -> Node:
        """With the kernels of the channels that are kept."""
        conv, channels = self.view, kept[self.node]
        changed = {
            **arguments(conv.node),
            "input": new.get(conv.input, conv.input),
            "weight": g.select(conv.weight, 0, channels),
            "bias": None if conv.bias is None else g.select(conv.bias, 0, channels),
            "groups": len(channels),
        }
        return placed(g(conv.node.target, *changed.values()), conv.node)


@dataclass(frozen=True, eq=False)
class Added(Step):
    """A sum with values of as many channels, with numbers, or with what is the same for all channels.

    Attributes:
        coefficients: one for each operand.
        number: what is added to all of them.
        others: whether a value without channels is added.
    """

    view: Sum
    coefficients: tuple[float, ...] = ()
    number: float = 0.0
    others: bool = False

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The sum of the constants."""
        total = torch.full((self.channels,), UNKNOWN if self.others else self.number, dtype=torch.float64)
        for coefficient, constant in zip(self.coefficients, given, strict=True):
            total = total + coefficient * constant
        return total

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Multiples in the same ratio in all terms."""
        factors = [alike.factor for alike in given]
        if self.others or self.number:
            factors.append(torch.ones(self.channels, dtype=torch.float64))
        keys = [
            tuple(part.item() for part in parts)
            for parts in zip(*(alike.root for alike in given), *(f / factors[0] for f in factors[1:]), strict=True)
        ]
        return grouped(keys, factors[0])

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The sum of the constants."""
        if self.others:
            return None
        return replay(g, (self.node,), dict(zip(self.operands, given, strict=True)))


@dataclass(frozen=True, eq=False)
class Multiplied(Step):
    """A product with a value of as many channels, with a number, or with what is the same for all channels."""

    view: Product

    @property
    def _sides(self) -> tuple[Any, Any]:
        return self.view.left, self.view.right

    def _side(self, side: Any, given: Sequence[Tensor]) -> Tensor:
        """The constants of one side."""
        if side in self.operands:
            return given[self.operands.index(side)]
        unknown = UNKNOWN if isinstance(side, fx.Node) else float(side)
        return torch.full((self.channels,), unknown, dtype=torch.float64)

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The product of the constants; zero where one factor is zero, whatever the other is."""
        left, right = (self._side(side, given) for side in self._sides)
        if self.view.divided:
            return left / right
        return torch.where((left == 0) | (right == 0), 0.0, left * right)

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Multiples of both factors."""
        size, keys = torch.ones(self.channels, dtype=torch.float64), [()] * self.channels
        for side, divides in zip(self._sides, (False, self.view.divided), strict=True):
            if side in self.operands:
                alike = given[self.operands.index(side)]
                size = size / alike.factor if divides else size * alike.factor
                keys = [(*key, root) for key, root in zip(keys, alike.root.tolist(), strict=True)]  # type: ignore[misc]
        return grouped(keys, size)

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The product of the constants."""
        if any(isinstance(side, fx.Node) and side not in self.operands for side in self._sides):
            return None
        return replay(g, (self.node,), dict(zip(self.operands, given, strict=True)))

    def ratio(self, g: Picker, given: Sequence[Node], channels: Sequence[int], roots: Sequence[int]) -> Node:
        """The product of the factors of both sides."""
        own = dict(zip(self.operands, given, strict=True))
        left, right = (own.get(side) if isinstance(side, fx.Node) else None for side in self._sides)
        if right is None:
            assert left is not None
            return left
        if left is None:
            return g(aten.reciprocal.default, right) if self.view.divided else right
        return g(aten.div.Tensor if self.view.divided else aten.mul.Tensor, left, right)
