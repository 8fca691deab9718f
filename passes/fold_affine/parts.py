r"""Affine maps behind a concatenation of layers, into the weights and biases of each.

.. math:: a [W_1 x_1 + b_1; W_2 x_2 + b_2] + s = [(a_1 W_1) x_1 + (a_1 b_1 + s_1); (a_2 W_2) x_2 + (a_2 b_2 + s_2)]

The parts lie one behind the other along their channels, so each layer gets its slice of scale and shift. The
concatenation stays, and the operators that only move channels between it and the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from passes import affine
from passes.fold_affine.channels import Channels, Move, along, through
from passes.fold_affine.folding import FoldMap
from passes.fold_affine.maps import Norm
from passes.fold_affine.moves import FARTHEST, passes
from passes.fold_affine.reading import read_factor, read_norm, read_shift
from passes.fold_affine.region import Region, region
from passes.fold_affine.vectors import spread
from passes.memory import sharing_refusal, strides_refusal
from passes.obstruction import compute, dtype_name, is_layer
from rewrite.ops import Concatenation, Convolution, Linear, value, view
from rewrite.provenance import called, function_name
from rewrite.rule import Fidelity, Match, Miss, Refusal, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.fold_affine.maps import Map, Vector
    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import View

aten = torch.ops.aten


@dataclass(frozen=True)
class Joined:
    """What a map reads: a concatenation with layers among its parts, and what moves its channels to the map.

    Attributes:
        whole: the concatenation.
        moves: between it and the map, the lowest first.
        channels: where the concatenation's channels, all of them, are in what the map reads.
    """

    whole: Concatenation
    moves: tuple[View, ...]
    channels: Channels

    @property
    def start(self) -> Channels:
        """The channels in the concatenation itself."""
        return along(self.whole.node, [self.whole.dim])

    @property
    def layers(self) -> tuple[affine.Layer, ...]:
        """The parts that are layers, in order."""
        views = map(view, self.whole.inputs)
        return tuple(found for found in views if isinstance(found, (Convolution, Linear)))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of it."""
        layers = (layer.node for layer in self.layers)
        return (*layers, self.whole.node, *(node for move in self.moves for node in move.nodes))

    def has(self, mapped: Map) -> bool:
        """Whether a map is one of these channels: it varies along no others, or not at all."""
        return all(self.channels.has(dim) for dim in mapped.dims)

    def expects(self, mapped: Map) -> bool:
        """Whether somebody would expect the map to be folded.

        A number is part of too much, as of a gelu, and what varies along other dimensions is no map of channels.
        """
        if isinstance(mapped, Norm):
            return True
        axes = [affine.channel_axis(layer) for layer in self.layers]
        return bool(mapped.dims) and self.has(mapped) and self.whole.dim in axes


def joined(mapped: Map) -> Joined | None:
    """The concatenation of layers that a map reads; None where it reads none, or not all channels or a mixture."""
    moves: list[View] = []
    found = view(mapped.input)
    while isinstance(found, Move) and len(moves) < FARTHEST and passes(found, mapped):
        moves.insert(0, found)
        found = view(found.input)
    if not isinstance(found, Concatenation) or not any(map(is_layer, found.inputs)):
        return None
    if not isinstance(value(found.node).shape[found.dim], int):
        return None
    channels: Channels | None = along(found.node, [found.dim])
    for move in moves:
        channels = through(channels, move) if channels is not None else None
    if channels is None or not channels.complete:
        return None
    if any(channels.has(dim) and not channels.pure(dim) for dim in mapped.dims):
        return None
    return Joined(found, tuple(moves), channels)


@dataclass(frozen=True)
class FoldBehindConcatenation(FoldMap):
    r"""Fold a batch norm, a factor or a shift behind concatenated layers into all of these.

    .. math:: W'_i = a_i W_i,\quad b'_i = a_i b_i + s_i

    Convolutions with kernels of several sizes, one for each part of the channels, have one norm behind all of them
    (MixNet, Tan and Le 2019). One operator less.

    Attributes:
        norms_only: batch norms alone.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a map of each channel behind a concatenation of layers"
    keeps = (Convolution, Linear, Concatenation)

    norms_only: bool = False

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The norm, the product or the sum that a node is."""
        norm = read_norm(node)
        return norm if norm is not None or self.norms_only else read_factor(graph, node) or read_shift(graph, node)

    def look(self, graph: Graph, mapped: Map) -> Match | Miss | None:
        """The match or miss of a map; None where nobody would expect one."""
        found = joined(mapped)
        if found is None:
            return None
        refusal = mapped.refusal(graph) or _parts_refusal(graph, mapped, found)
        refusal = refusal or _misaligned(mapped, found) or strides_refusal(mapped.input, mapped.node)
        where = refusal or region(mapped, found.whole.node, found.start, found.moves)
        # where others read the concatenation too that is the reason, whatever the result would share memory with
        if not isinstance(where, Refusal):
            where = sharing_refusal(mapped.input, mapped.node) or where
        if isinstance(where, Region):
            where = Region(tuple(sorted({*where.nodes, *found.whole.inputs})), where.outputs)
            return Match(self, where.nodes, where.outputs, {"mapped": mapped, "joined": found, "region": where})
        if not found.expects(mapped):
            return None
        return Miss(self.name, mapped.node, where, (*found.nodes, *mapped.view.nodes))

    def rewrite(self, match: Match, g: Builder) -> Sequence[Node]:
        """The concatenation of layers with other weights, then what was between it and the map."""
        mapped, found, where = match.mapped, match.joined, match.region
        assert isinstance(found, Joined)
        assert isinstance(where, Region)
        like = found.layers[0].weight
        scale, shift = mapped.coefficients(g)
        if scale is not None:
            scale = spread(g, scale, mapped.dims, found.channels, 1.0, like)
        if shift is not None:
            shift = spread(g, shift, mapped.dims, found.channels, 0.0, like)
        made: dict[Node, Node] = {}
        start = 0
        for layer in found.layers:
            end = start + affine.outputs_of(layer)
            made[layer.node] = affine.mapped(g, layer, _slice(g, scale, start, end), _slice(g, shift, start, end))
            start = end
        return where.replay(g, made, mapped)


def _slice(g: Builder, vector: Vector | None, start: int, end: int) -> Vector | None:
    """The coefficients of the channels from ``start`` to ``end``."""
    if not isinstance(vector, Node) or affine.is_number(vector):
        return vector
    return g(aten.slice.Tensor, vector, 0, start, end)


def _parts_refusal(graph: Graph, mapped: Map, found: Joined) -> Refusal | None:
    """Why one of the parts does not take its slice of a map."""
    refusals = (_part_refusal(graph, mapped, found.whole, part) for part in found.whole.inputs)
    return next((refusal for refusal in refusals if refusal is not None), None)


def _part_refusal(graph: Graph, mapped: Map, whole: Concatenation, part: Node) -> Refusal | None:
    name, layer = function_name(whole.node), view(part)
    if not isinstance(layer, (Convolution, Linear)):
        return Refusal(f"{name} joins layers with what is neither a convolution nor a linear layer", part,
                       f"apply {mapped.what} to each part by itself, before {called(whole.node)}")  # fmt: skip
    refusal = affine.layer_refusal(graph, layer)
    if refusal is not None:
        return refusal
    axis = affine.channel_axis(layer)
    if axis != whole.dim:
        return Refusal(f"{name} joins along dimension {whole.dim}, and the layer's channels are dimension {axis}", part,
                       f"apply {mapped.what} to the channels of each part, before {called(whole.node)}")  # fmt: skip
    given, made = value(part).dtype, value(whole.node).dtype
    if given != made:
        return Refusal(f"{name} turns {given} into {made}", part, compute(part, dtype_name(whole.node)))
    if whole.inputs.count(part) > 1:
        return Refusal(f"{name} joins the layer with itself, and each place would need other weights", part,
                       "build a layer for each place")  # fmt: skip
    reader = next((user for user in part.users if user is not whole.node), None)
    return None if reader is None else read_elsewhere(part, reader)


def _misaligned(mapped: Map, found: Joined) -> Refusal | None:
    """Why a map is not one of the layers' channels."""
    if found.has(mapped):
        return None
    return Refusal(f"{mapped.what} varies along other dimensions than the channels of the layers", found.whole.node,
                   f"transpose between the two, so that {mapped.what} finds the channels")  # fmt: skip
