"""Fold a factor for each channel into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from passes import affine, layout
from passes.obstruction import obstruction
from rewrite.ops import Convolution, Linear, Product, is_tensor, value, view, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldLayerScale(Rule):
    r"""Fold a constant factor for each channel, a layer scale, into the convolution or linear layer before it.

    .. math:: W'_o = \gamma_o W_o,\quad b'_o = \gamma_o b_o

    Permutations and reshapes between the two stay where they are: ConvNeXt scales after it returns to channels first.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a layer times a constant for each channel"
    keeps = (Convolution, Linear)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each product of a layer with a constant among ``dirty``."""
        for node in dirty:
            product = view_as(node, Product)
            found = self._look(graph, product) if product is not None and not graph.is_constant(node) else None
            if found is not None:
                yield found

    def _look(self, graph: Graph, product: Product) -> Match | Miss | None:
        data, scale, axis = _operands(graph, product)
        if data is None or scale is None or axis is None:
            return None
        source, between, channels = layout.below(data, axis)
        layer = view(source)
        refusal = _factor_refusal(graph, product, scale)
        if not isinstance(layer, (Convolution, Linear)):
            found = obstruction(graph, data)
            if found is None:
                return None
            refusal = refusal or found.refusal("the factor", value(scale).numel(), converted=True)
            return Miss(self.name, product.node, refusal, (found.layer.node, product.node))
        refusal = refusal or affine.layer_refusal(graph, layer)
        if refusal is None and channels != affine.channel_axis(layer):
            refusal = Refusal("the factor is not one for each output channel of the layer", scale,
                              _channel_remedy(layer, scale))  # fmt: skip
        if refusal is None and value(product.node).dtype != value(source).dtype:
            refusal = Refusal(f"the product turns {value(source).dtype} into {value(product.node).dtype}", product.node,
                              f"convert the factor to {value(source).dtype}")  # fmt: skip
        nodes = (source, *between, product.node)
        if refusal is not None:
            return Miss(self.name, product.node, refusal, nodes)
        captures = {"layer": layer, "scale": scale, "divided": product.divided, "layout": between}
        return Match(self, nodes, (product.node,), captures)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The layer with scaled weights, then the layout operators."""
        layer = match.layer
        scale = g(aten.reshape.default, match.scale, [-1])
        if match.divided:
            scale = g(aten.reciprocal.default, scale)
        bias = None if layer.bias is None else g(aten.mul.Tensor, layer.bias, scale)
        result = affine.with_weights(g, layer, layer.input, affine.scaled_outputs(g, layer, scale), bias)
        return layout.replay(g, match.layout, layer.node, result)


def _operands(graph: Graph, product: Product) -> tuple[Node | None, Node | None, int | None]:
    """What is scaled, by what, and the dimension along which the factor varies; a constant factor is preferred."""
    pairs = [(product.left, product.right), (product.right, product.left)]
    found = []
    for data, scale in pairs:
        if not isinstance(data, Node) or not isinstance(scale, Node) or not (is_tensor(data) and is_tensor(scale)):
            return None, None, None
        axis = _channel(value(scale).shape, value(product.node).shape)
        if axis is not None and not graph.is_constant(data):
            found.append((not graph.is_constant(scale), data, scale, axis))
    return min(found, key=lambda pair: pair[0])[1:] if found else (None, None, None)


def _factor_refusal(graph: Graph, product: Product, scale: Node) -> Refusal | None:
    """Why a factor is not a constant that multiplies."""
    if not graph.is_constant(scale):
        return affine.varying(graph, scale, "the factor")
    if product.divided and scale is product.left:
        return Refusal("the factor is divided by the layer", product.node, "divide the layer by the factor")
    return None


def _channel_remedy(layer: affine.Layer, scale: Node) -> str:
    outputs = layer.out_channels if isinstance(layer, Convolution) else layer.out_features
    if value(scale).numel() != outputs:
        return f"give it {outputs} elements along the layer's channels"
    return f"reshape it to {[outputs, *[1] * (layer.dims if isinstance(layer, Convolution) else 0)]}"


def _channel(factor: Sequence[Any], shape: Sequence[Any]) -> int | None:
    """The dimension of a product that a factor varies along, if it is one and the factor has its size there."""
    if not all(isinstance(size, int) for size in factor):
        return None
    sizes = [1] * (len(shape) - len(factor)) + list(factor)
    varying = [d for d, size in enumerate(sizes) if size != 1]
    if len(varying) != 1 or len(sizes) != len(shape) or not isinstance(shape[varying[0]], int):
        return None
    return varying[0] if sizes[varying[0]] == shape[varying[0]] else None
