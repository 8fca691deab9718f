r"""An evaluated batch norm as an affine map, and layers rebuilt over changed weights: all of it weight algebra.

.. math:: y = a x + s, \quad a = \gamma / \sqrt{\sigma^2 + \epsilon}, \quad s = \beta - a \mu
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from rewrite.ops import BatchNorm, Convolution, Linear, arguments, value
from rewrite.provenance import called, module_class, module_path
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

Layer = Convolution | Linear


def norm_refusal(graph: Graph, norm: BatchNorm) -> Refusal | None:
    """Why a batch norm is not a constant affine map of its input, or None where it is."""
    if norm.mean is None or norm.var is None:
        return Refusal("the norm keeps no running statistics", norm.node, "build it with track_running_stats=True")
    if norm.batch_statistics:
        return Refusal("the norm uses batch statistics", norm.node, _evaluation(norm.node))
    for name in ("weight", "bias", "mean", "var"):
        parameter = getattr(norm, name)
        if parameter is not None and not graph.is_constant(parameter):
            return varying(graph, parameter, f"the norm's {name}")
    given, made = value(norm.input).dtype, value(norm.node).dtype
    if not made.is_floating_point or made != given:
        return Refusal(f"the norm turns {given} into {made}", norm.node, "convert its input before the layer")
    return None


def _evaluation(node: Node) -> str:
    """How to make a norm use its running statistics: one that is a module, or a call of the function."""
    if "norm" not in module_class(node).rpartition(".")[2].lower():
        return f"pass training=False to {called(node)}"
    return f"call eval() on '{module_path(node)}'" if module_path(node) else "call eval() on the model"


def varying(graph: Graph, parameter: Node, what: str) -> Refusal:
    """Why a parameter is not constant, from where its first varying operand comes from."""
    cause = parameter
    while (operand := next((arg for arg in cause.all_input_nodes if not graph.is_constant(arg)), None)) is not None:
        cause = operand
    if cause.op == "placeholder":
        remedy = f"compute it from parameters, not from {called(cause)}"
        return Refusal(f"{what} depends on the input", parameter, remedy)
    if cause.op == "get_attr":
        return Refusal(f"{what} depends on what the call writes", parameter,
                       f"leave {called(cause)} unwritten, as eval() does for what is written in training")  # fmt: skip
    return Refusal(f"{what} depends on what is not known to be the same at each call", cause,
                   f"compute it without {called(cause)}, or call eval() where this is noise of training")  # fmt: skip


def layer_refusal(graph: Graph, layer: Layer) -> Refusal | None:
    """Why the weights of a layer cannot be changed, or None where they can."""
    for name, what in (("weight", "the kernel"), ("bias", "the bias")):
        parameter = getattr(layer, name)
        if parameter is not None and not graph.is_constant(parameter):
            return varying(graph, parameter, what)
    if not value(layer.node).dtype.is_floating_point:
        return Refusal(f"its values are {value(layer.node).dtype}", layer.node,
                       "compute in a floating dtype, with real and imaginary parts as channels")  # fmt: skip
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


def scaled_outputs(g: Builder, layer: Layer, scale: Node | float) -> Node:
    """The layer's weight with each output channel multiplied by its element of ``scale``, ``[O]``, or by a number."""
    weight = layer.weight
    if is_number(scale):
        return g(aten.mul.Tensor, weight, scale)
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


def mapped(g: Builder, layer: Layer, scale: Node | float | None, shift: Node | float | None) -> Node:
    """The layer with an affine map of its output channels behind it; each a vector, ``[O]``, a number, or None."""
    weight, bias = layer.weight, layer.bias
    if scale is not None and bias is not None:
        bias = g(aten.mul.Tensor, bias, scale)
    if shift is not None:
        bias = g(aten.add.Tensor, bias, shift) if bias is not None else bias_of(g, layer, shift)
    if scale is not None:
        weight = scaled_outputs(g, layer, scale)
    return with_weights(g, layer, layer.input, weight, bias)


def is_number(vector: Node | float) -> bool:
    """Whether it is a number, or a constant of no dimensions, and not one element for each channel."""
    return not isinstance(vector, Node) or value(vector).dim() == 0


def scaled_inputs(g: Builder, layer: Layer, scale: Node | float) -> Node:
    """The layer's weight with each input channel multiplied by its element of ``scale``, ``[C]``, or by a number."""
    if is_number(scale) or isinstance(layer, Linear):
        return g(aten.mul.Tensor, layer.weight, per_input(g, layer, scale))
    if layer.transposed:
        return g(aten.mul.Tensor, layer.weight, g(aten.reshape.default, scale, [-1, 1, *[1] * layer.dims]))
    weight = g(aten.mul.Tensor, by_groups(g, layer), per_input(g, layer, scale))
    return g(aten.reshape.default, weight, [int(n) for n in value(layer.weight).shape])


def constant_response(g: Builder, layer: Layer, constant: Node | float) -> Node:
    """What the layer makes of ``constant``, ``[C]`` or a number, at every position where it sees no padding: ``[O]``.

    The bias is not in it. A convolution is not transposed.
    """
    products = g(aten.mul.Tensor, by_groups(g, layer), per_input(g, layer, constant))
    if isinstance(layer, Linear):
        return g(aten.sum.dim_IntList, products, [0 if layer.stored_transposed else 1])
    total = g(aten.sum.dim_IntList, products, list(range(2, layer.dims + 3)))
    return g(aten.reshape.default, total, [layer.out_channels])


def bias_of(g: Builder, layer: Layer, shift: Node | float) -> Node:
    """The bias, ``[O]``, that adds ``shift``, ``[O]`` or a number, to the layer's result."""
    if not isinstance(shift, Node):
        return g(aten.new_full.default, layer.weight, [outputs_of(layer)], shift)
    return g(aten.expand.default, shift, [outputs_of(layer)]) if is_number(shift) else shift


def outputs_of(layer: Layer) -> int:
    """How many output channels a layer has."""
    return layer.out_channels if isinstance(layer, Convolution) else layer.out_features


def inputs_of(layer: Layer) -> int:
    """How many input channels a layer has."""
    return layer.in_channels if isinstance(layer, Convolution) else layer.in_features


def per_input(g: Builder, layer: Layer, vector: Node | float) -> Node | float:
    """``vector``, ``[C]`` over the layer's input channels, in a shape that multiplies :func:`by_groups` weights."""
    if not isinstance(vector, Node) or is_number(vector):
        return vector
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
        rows = value(x).dim() == 2
        if layer.stored_transposed and bias is None:
            return g(aten.mm.default if rows else aten.matmul.default, x, weight)
        if layer.stored_transposed and rows:
            return g(aten.addmm.default, bias, x, weight)
        return g(aten.linear.default, x, g(aten.t.default, weight) if layer.stored_transposed else weight, bias)
    changed = {**arguments(layer.node), "input": x, "weight": weight, "bias": bias}
    return g(layer.node.target, *changed.values())


def cast(g: Builder, node: Node, dtype: torch.dtype) -> Node:
    """``node`` in the given dtype; itself where it has it already."""
    recorded = node.meta["val"]
    return node if recorded.dtype == dtype else g(aten._to_copy.default, node, dtype=dtype)
