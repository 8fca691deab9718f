"""Layers of one geometry as one: their outputs one behind the other, or their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes import affine
from passes.costs import width
from rewrite.ops import Convolution, Linear, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten


@dataclass(frozen=True)
class Geometry:
    """What layers without groups must have in common to be stacked: everything but their channels and biases."""

    kind: type[affine.Layer]
    dtype: torch.dtype
    numbers: tuple[Any, ...]

    @classmethod
    def of(cls, layer: affine.Layer) -> Geometry:
        """The geometry of a layer."""
        if isinstance(layer, Linear):
            numbers: tuple[Any, ...] = (layer.stored_transposed,)
        else:
            numbers = (layer.kernel, layer.stride, layer.padding, layer.dilation, layer.transposed,
                       layer.output_padding)  # fmt: skip
        return cls(type(layer), value(layer.weight).dtype, numbers)


def stacked(g: Builder, layers: Sequence[affine.Layer], x: Node) -> Node:
    """The results of layers over ``x`` one behind the other along the channels, as one layer."""
    weight = g(aten.cat.default, [layer.weight for layer in layers], 1 if _inputs_first(layers[0]) else 0)
    bias: Node | None = None
    if any(layer.bias is not None for layer in layers):
        bias = g(aten.cat.default, [_bias(g, layer) for layer in layers])
    return affine.with_weights(g, layers[0], x, weight, bias)


def summed(g: Builder, layers: Sequence[affine.Layer], factors: Sequence[float], x: Node) -> Node:
    """The sum of layers times factors, where each reads its part of the channels of ``x``, as one layer."""
    scaled = zip(layers, factors, strict=True)
    weights = [times(g, layer.weight, factor) for layer, factor in scaled]
    weight = g(aten.cat.default, weights, 0 if _inputs_first(layers[0]) else 1)
    bias: Node | None = None
    for layer, factor in zip(layers, factors, strict=True):
        if layer.bias is not None:
            term = times(g, layer.bias, factor)
            bias = term if bias is None else g(aten.add.Tensor, bias, term)
    return affine.with_weights(g, layers[0], x, weight, bias)


def _inputs_first(layer: affine.Layer) -> bool:
    """Whether the first dimension of the weight is that of the input channels."""
    return layer.transposed if isinstance(layer, Convolution) else layer.stored_transposed


def _bias(g: Builder, layer: affine.Layer) -> Node:
    if layer.bias is None:
        return g(aten.new_zeros.default, layer.weight, [width(layer)[1]])
    return affine.cast(g, layer.bias, value(layer.weight).dtype)


def times(g: Builder, weight: Node, factor: float) -> Node:
    """A weight times a number."""
    return weight if factor == 1 else g(aten.mul.Tensor, weight, factor)
