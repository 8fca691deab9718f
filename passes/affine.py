r"""An evaluated batch norm as an affine map, and layers rebuilt over changed weights: all of it weight algebra.

.. math:: y = a x + s, \quad a = \gamma / \sqrt{\sigma^2 + \epsilon}, \quad s = \beta - a \mu
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewrite.ops import BatchNorm, Convolution, Linear, arguments, value
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

Layer = Convolution | Linear


def norm_refusal(graph: Graph, norm: BatchNorm) -> Refusal | None:
    """Why a batch norm is not a constant affine map of its input, or None where it is."""
    if norm.batch_statistics:
        return Refusal("the norm uses batch statistics", norm.node,
                       "call eval() on a norm that keeps running statistics")  # fmt: skip
    for parameter in norm.operands:
        if parameter is not norm.input and not graph.is_constant(parameter):
            return Refusal("the norm's parameters depend on the input", parameter)
    if not value(norm.node).dtype.is_floating_point or value(norm.node).dtype != value(norm.input).dtype:
        return Refusal(f"the norm turns {value(norm.input).dtype} into {value(norm.node).dtype}", norm.node)
    return None


def layer_refusal(graph: Graph, layer: Layer) -> Refusal | None:
    """Why the weights of a layer cannot be changed, or None where they can."""
    for name in ("weight", "bias"):
        parameter = getattr(layer, name)
        if parameter is not None and not graph.is_constant(parameter):
            return Refusal("the kernel depends on the input" if name == "weight" else "the bias depends on the input",
                           parameter)  # fmt: skip
    if not value(layer.node).dtype.is_floating_point:
        return Refusal(f"its values are {value(layer.node).dtype}", layer.node)
    if isinstance(layer, Convolution) and not layer.batched:
        return Refusal("the convolution's input has no batch dimension", layer.node, "add one with unsqueeze(0)")
    return None


def channel_axis(layer: Layer) -> int:
    """The dimension of a layer's result that holds its output channels."""
    return value(layer.node).dim() - 1 if isinstance(layer, Linear) else 1


def norm_scale(g: Builder, norm: BatchNorm) -> Node:
    """The factor ``a`` of an evaluated norm, ``[C]``."""
    deviation = g(aten.sqrt.default, g(aten.add.Tensor, norm.var, norm.eps))
    if norm.weight is None:
        return g(aten.reciprocal.default, deviation)
    return g(aten.div.Tensor, norm.weight, deviation)


def norm_shift(g: Builder, norm: BatchNorm, scale: Node) -> Node:
    """The constant ``s`` of an evaluated norm, ``[C]``."""
    centre = g(aten.mul.Tensor, norm.mean, scale)
    return g(aten.neg.default, centre) if norm.bias is None else g(aten.sub.Tensor, norm.bias, centre)


def scaled_outputs(g: Builder, layer: Layer, scale: Node) -> Node:
    """The layer's weight with each output channel multiplied by its element of ``scale``, ``[O]``."""
    weight = layer.weight
    if isinstance(layer, Linear):
        return g(aten.mul.Tensor, weight, scale if layer.stored_transposed else g(aten.unsqueeze.default, scale, 1))
    taps = [1] * layer.dims
    if not layer.transposed:
        return g(aten.mul.Tensor, weight, g(aten.reshape.default, scale, [-1, 1, *taps]))
    # [C, O / groups, ...]: the output channels of a group stand beside each of its input channels
    shape = [int(n) for n in value(weight).shape]
    grouped = g(aten.reshape.default, weight, [layer.groups, shape[0] // layer.groups, *shape[1:]])
    product = g(aten.mul.Tensor, grouped, g(aten.reshape.default, scale, [layer.groups, 1, shape[1], *taps]))
    return g(aten.reshape.default, product, shape)


def per_input(g: Builder, layer: Layer, vector: Node) -> Node:
    """``vector``, ``[C]`` over the layer's input channels, in a shape that multiplies :func:`by_groups` weights."""
    if isinstance(layer, Linear):
        return g(aten.unsqueeze.default, vector, 1) if layer.stored_transposed else vector
    return g(aten.reshape.default, vector, [layer.groups, 1, -1, *[1] * layer.dims])


def by_groups(g: Builder, layer: Layer) -> Node:
    """A convolution's weight as ``[groups, O / groups, C / groups, *kernel]``; a linear layer's as it is."""
    if isinstance(layer, Linear):
        return layer.weight
    shape = [int(n) for n in value(layer.weight).shape]
    return g(aten.reshape.default, layer.weight, [layer.groups, shape[0] // layer.groups, *shape[1:]])


def with_weights(g: Builder, layer: Layer, x: Node, weight: Node, bias: Node | None) -> Node:
    """The same layer over another input, weight and bias; these are rounded to the dtypes that it had."""
    dtype = value(layer.weight).dtype
    weight = cast(g, weight, dtype)
    if bias is not None:
        bias = cast(g, bias, dtype if layer.bias is None else value(layer.bias).dtype)
    if isinstance(layer, Linear):
        if layer.stored_transposed and bias is None:
            return g(aten.mm.default, x, weight)
        if layer.stored_transposed:
            return g(aten.addmm.default, bias, x, weight)
        return g(aten.linear.default, x, weight, bias)
    changed = {**arguments(layer.node), "input": x, "weight": weight, "bias": bias}
    return g(layer.node.target, *changed.values())


def cast(g: Builder, node: Node, dtype: torch.dtype) -> Node:
    """``node`` in the given dtype; itself where it has it already."""
    recorded = node.meta["val"]
    return node if recorded.dtype == dtype else g(aten._to_copy.default, node, dtype=dtype)
