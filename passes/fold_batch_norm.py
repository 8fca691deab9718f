"""Fold an evaluated batch norm into the layer before it, or into the one after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine, layout
from passes.obstruction import is_layer, obstruction
from rewrite.ops import BatchNorm, Concatenation, Convolution, Linear, value, view, view_as
from rewrite.pipeline import Pass
from rewrite.provenance import function_name
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBatchNormAfter(Rule):
    r"""Fold an evaluated batch norm into the convolution or linear layer before it.

    .. math:: W'_o = a_o W_o,\quad b'_o = a_o b_o + s_o,\quad
        a = \gamma / \sqrt{\sigma^2 + \epsilon},\quad s = \beta - a \mu

    Permutations and reshapes between the two that keep the channels a dimension of their own stay where they are.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a batch norm"
    keeps = (Convolution, Linear)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each batch norm among ``dirty``."""
        for node in dirty:
            norm = view_as(node, BatchNorm)
            if norm is not None:
                yield self._look(graph, norm)

    def _look(self, graph: Graph, norm: BatchNorm) -> Match | Miss:
        refusal = affine.norm_refusal(graph, norm)
        source, between, channels = layout.below(norm.input, 1)
        layer = view(source)
        if not isinstance(layer, (Convolution, Linear)):
            return self._without_layer(graph, norm, refusal, source)
        refusal = refusal or affine.layer_refusal(graph, layer)
        if refusal is None and channels != affine.channel_axis(layer):
            refusal = Refusal(f"the norm's channels, {_channels_of(norm)}, are not those of the layer", source,
                              "transpose between the two, so that the norm finds them in dimension 1")  # fmt: skip
        nodes = (source, *between, *norm.nodes)
        if refusal is not None:
            return Miss(self.name, norm.node, refusal, nodes)
        return Match(self, nodes, (norm.node,), {"norm": norm, "layer": layer, "layout": between})

    def _without_layer(self, graph: Graph, norm: BatchNorm, refusal: Refusal | None, source: Node) -> Miss:
        found = obstruction(graph, norm.input)
        if found is not None:
            refusal = refusal or found.refusal("the norm", value(norm.node).shape[1])
            return Miss(self.name, norm.node, refusal, (found.layer.node, *norm.nodes))
        parts = view_as(source, Concatenation)
        if parts is not None and parts.dim == 1 and all(map(is_layer, parts.inputs)):
            refusal = refusal or Refusal(f"{function_name(source)} stands between the layers and the norm", source,
                                         "give each of them a norm of its own")  # fmt: skip
            return Miss(self.name, norm.node, refusal, (*parts.inputs, *norm.nodes))
        neither = Refusal("it follows neither a convolution nor a linear layer", source,
                          "put it right behind a convolution or a linear layer")  # fmt: skip
        return Miss(self.name, norm.node, refusal or neither, norm.nodes)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The layer with scaled weights, then the layout operators."""
        layer, norm = match.layer, match.norm
        scale = affine.norm_scale(g, norm)
        bias = affine.norm_shift(g, norm, scale)
        if layer.bias is not None:
            bias = g(aten.add.Tensor, g(aten.mul.Tensor, layer.bias, scale), bias)
        result = affine.with_weights(g, layer, layer.input, affine.scaled_outputs(g, layer, scale), bias)
        return layout.replay(g, match.layout, layer.node, result)


@dataclass(frozen=True)
class FoldBatchNormBefore(Rule):
    r"""Fold an evaluated batch norm into the one layer that reads it: a linear layer or a convolution without padding.

    .. math:: W'_{oc} = a_c W_{oc},\quad b'_o = b_o + \sum_{c,i} W_{oci} s_c

    A convolution that pads sees zeros where the norm would have given ``s``, so its border forbids the fold.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a batch norm that a convolution or a linear layer reads"
    keeps = (Convolution, Linear)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each batch norm among ``dirty`` that a convolution or linear layer reads."""
        for node in dirty:
            norm = view_as(node, BatchNorm)
            for reader in node.users if norm is not None else ():
                layer = view(reader)
                if norm is not None and isinstance(layer, (Convolution, Linear)) and layer.input is node:
                    yield self._look(graph, norm, layer)
                    break

    def _look(self, graph: Graph, norm: BatchNorm, layer: Convolution | Linear) -> Match | Miss:
        refusal = affine.norm_refusal(graph, norm) or affine.layer_refusal(graph, layer) or _input_refusal(norm, layer)
        nodes = (*norm.nodes, layer.node)
        if refusal is not None:
            return Miss(self.name, norm.node, refusal, nodes)
        return Match(self, nodes, (layer.node,), {"norm": norm, "layer": layer})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The layer over the norm's input."""
        layer, norm = match.layer, match.norm
        scale = affine.norm_scale(g, norm)
        shift = affine.norm_shift(g, norm, scale)
        old = affine.by_groups(g, layer)
        weight = g(aten.mul.Tensor, old, affine.per_input(g, layer, scale))
        constant = g(aten.mul.Tensor, old, affine.per_input(g, layer, shift))
        if isinstance(layer, Linear):
            bias = g(aten.sum.dim_IntList, constant, [0 if layer.stored_transposed else 1])
        else:
            weight = g(aten.reshape.default, weight, [int(n) for n in value(layer.weight).shape])
            total = g(aten.sum.dim_IntList, constant, list(range(2, layer.dims + 3)))
            bias = g(aten.reshape.default, total, [layer.out_channels])
        if layer.bias is not None:
            bias = g(aten.add.Tensor, layer.bias, bias)
        return affine.with_weights(g, layer, norm.input, weight, bias)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold every evaluated batch norm that stands beside a layer of constant weights into that layer."""

    def rules(self) -> tuple[Rule, ...]:
        """The layer before the norm is preferred to the one after it."""
        return FoldBatchNormAfter(), FoldBatchNormBefore()


def _input_refusal(norm: BatchNorm, layer: Convolution | Linear) -> Refusal | None:
    """Why the input channels of a layer are not those of the norm, everywhere."""
    other = next((reader for reader in norm.node.users if reader is not layer.node), None)
    if other is not None:
        return read_elsewhere(norm.node, other)
    if isinstance(layer, Linear):
        if value(norm.node).dim() == 2:
            return None
        return Refusal(f"the norm's channels, {_channels_of(norm)}, are not those of the layer", layer.node,
                       "flatten both to [N, C], with all other dimensions in N")  # fmt: skip
    if layer.transposed:
        return Refusal("the convolution is transposed", layer.node, "put the norm right behind it")
    if any(amount for pair in layer.padding for amount in pair):
        return Refusal("the convolution pads with zeros after the norm, which the norm would have moved", layer.node,
                       "set padding=0, or put the norm right behind it")  # fmt: skip
    return None


def _channels_of(norm: BatchNorm) -> str:
    return f"dimension 1 of {value(norm.node).dim()}"
