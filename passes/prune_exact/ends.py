"""Layers at both ends of a flow of channels: those that make them, and those that read them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.prune_exact.reading import is_depthwise, ordered
from rewrite.cost import values_read
from rewrite.ops import Convolution, Linear, value, view
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.fx import Node

    from passes.prune_exact.select import Picker
    from passes.prune_exact.weights import Weights
    from rewrite.graph import Graph

aten = torch.ops.aten

Layer = Convolution | Linear


def dense(node: Node) -> Layer | None:
    """The layer that a node is, if each of its results depends on several channels, or None."""
    found = view(node)
    return found if isinstance(found, (Convolution, Linear)) and not is_depthwise(found) else None


def input_axis(layer: Layer) -> int:
    """The dimension of a layer's input that holds its channels."""
    return value(layer.input).dim() - 1 if isinstance(layer, Linear) else 1


def rows(layer: Layer) -> int:
    """The dimension of a layer's weight that stands for its output channels."""
    return int(layer.stored_transposed if isinstance(layer, Linear) else layer.transposed)


def columns(layer: Layer) -> int:
    """The dimension of a layer's weight that stands for its input channels."""
    return 1 - rows(layer)


def groups(layer: Layer) -> int:
    """The number of groups of a layer's channels."""
    return layer.groups if isinstance(layer, Convolution) else 1


def parameters(layer: Layer) -> tuple[Node, ...]:
    """Weight and bias."""
    return tuple(node for node in (layer.weight, layer.bias) if node is not None)


def source_refusal(graph: Graph, layer: Layer) -> Refusal | None:
    """Why a layer cannot make fewer channels."""
    refusal = affine.layer_refusal(graph, layer) or shared(graph, layer.node, parameters(layer))
    if refusal is None and isinstance(layer, Convolution) and layer.transposed and layer.groups > 1:
        return Refusal(f"the transposed convolution has {layer.groups} groups of channels", layer.node,
                       f"set groups=1 in {called(layer.node)}")  # fmt: skip
    return refusal


def reader_refusal(graph: Graph, layer: Layer, operand: Node, axis: int) -> Refusal | None:
    """Why a layer cannot do with fewer channels of its input."""
    if axis != input_axis(layer) or layer.input is not operand or operand in parameters(layer):
        return ordered(layer.node)
    refusal = affine.layer_refusal(graph, layer) or shared(graph, layer.node, parameters(layer))
    if refusal is None and groups(layer) > 1:
        return Refusal(f"the convolution has {groups(layer)} groups of channels, which would be unequal", layer.node,
                       f"set groups=1 in {called(layer.node)}")  # fmt: skip
    return refusal


def shared(graph: Graph, node: Node, given: Sequence[Node]) -> Refusal | None:
    """Why the parameters of an operator cannot become smaller: another one reads them as they are."""
    for parameter in given:
        names = graph.fx.find_nodes(op="get_attr", target=parameter.target) if parameter.op == "get_attr" else ()
        # a weight that is transposed first has one reader between
        others = [
            user
            for same in dict.fromkeys((parameter, *names))
            for user in same.users
            if user is not node
            and same in values_read(user)
            and not (graph.is_constant(user) and set(user.users) == {node})
        ]
        if others:
            return Refusal(f"{called(parameter)} is a parameter of {called(others[0])} too", node,
                           f"give {called(node)} parameters of its own")  # fmt: skip
    return None


# -- what the weights say ---------------------------------------------------------------------------------------------


def legible(graph: Graph, layer: Layer) -> bool:
    """Whether the weights are constants with a row for each output channel."""
    grouped = isinstance(layer, Convolution) and layer.transposed and layer.groups > 1
    strided = value(layer.weight).layout is torch.strided
    return strided and affine.layer_refusal(graph, layer) is None and not grouped


def row_values(weights: Weights, layer: Layer) -> Tensor:
    """The weights and the bias of each output channel, ``[O, n + 1]``."""
    weight = weights.value(layer.weight).movedim(rows(layer), 0).flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else weights.value(layer.bias)
    return torch.cat([weight, bias[:, None]], 1)


def constants(weights: Weights, layer: Layer) -> Tensor:
    """The bias of each output channel whose weights are all zero, NaN for the others."""
    values = row_values(weights, layer)
    return torch.where((values[:, :-1] == 0).all(1), values[:, -1].double(), torch.nan)


def unused(graph: Graph, layer: Layer) -> Tensor:
    """For each input channel whether all its weights are zero."""
    return (graph.value(layer.weight).movedim(columns(layer), 0).flatten(1) == 0).all(1).cpu()


def pads(layer: Layer) -> bool:
    """Whether a result depends on how much of the kernel lies inside the input."""
    if isinstance(layer, Linear):
        return False
    return layer.transposed or any(amount for pair in layer.padding for amount in pair)


# -- building ---------------------------------------------------------------------------------------------------------


Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Reading:
    """What becomes of the input channels of a layer.

    Attributes:
        kept: those that are left.
        constant: of the others, those that are a constant other than zero.
        equal: of the others, those that equal one that is left, with that one.
        multiple: those that are multiples of one that is left.
        proportional: those that are constants, as one that is left is.
    """

    kept: tuple[int, ...]
    constant: tuple[int, ...] = ()
    equal: Pairs = ()
    multiple: Pairs = ()
    proportional: Pairs = ()


@dataclass(frozen=True)
class Vectors:
    """What a reading needs to know of channels, as vectors: constants, and the factors between pairs."""

    constant: Node | None = None
    multiple: Node | None = None
    proportional: Node | None = None


def smaller(
    g: Picker, layer: Layer, x: Node, made: Sequence[int] | None, reading: Reading | None, vectors: Vectors
) -> Node:
    """A layer of fewer channels.

    Args:
        g: the builder.
        layer: the layer.
        x: its new input.
        made: its output channels that are left, None for all.
        reading: its input channels that are left, None for all.
        vectors: for the channels that ``reading`` names.
    """
    weight, bias, dim = layer.weight, layer.bias, columns(layer)
    if reading is not None:
        if vectors.constant is not None:
            bias = _absorbed(g, layer, reading.constant, vectors.constant)
        weight = g.select(weight, dim, reading.kept)
        for pairs, by in (
            (reading.equal, None),
            (reading.multiple, vectors.multiple),
            (reading.proportional, vectors.proportional),
        ):
            if pairs:
                into = [reading.kept.index(root) for _, root in pairs]
                weight = g.added(weight, dim, into, g.select(layer.weight, dim, [i for i, _ in pairs]), by)
    if made is not None:
        weight = g.select(weight, rows(layer), made)
        bias = None if bias is None else g.select(bias, 0, made)
    return affine.with_weights(g.g, layer, x, weight, bias)


def _absorbed(g: Picker, layer: Layer, channels: Sequence[int], constant: Node) -> Node:
    """The bias with what constant input channels give."""
    dim, rank = columns(layer), value(layer.weight).dim()
    part = g.select(layer.weight, dim, channels)
    product = g(aten.mul.Tensor, part, g.along(constant, dim, rank))
    shift = g(aten.sum.dim_IntList, product, [d for d in range(rank) if d != rows(layer)])
    return shift if layer.bias is None else g(aten.add.Tensor, layer.bias, shift)
