r"""Affine maps behind a layer, into its weight and bias.

.. math:: a_o (W_o x + b_o) + s_o = (a_o W_o) x + (a_o b_o + s_o)

Operators that only move channels may stand between; where they take some of the channels, only their rows change. What
is left is one operator less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from passes import affine
from passes.fold_affine.channels import Channels, Move, along, through
from passes.fold_affine.folding import FoldMap
from passes.fold_affine.moves import FARTHEST, passes
from passes.fold_affine.parts import joined
from passes.fold_affine.region import Region, region
from passes.fold_affine.vectors import spread
from passes.memory import sharing_refusal, strides_refusal
from passes.obstruction import obstruction
from rewrite.ops import Convolution, Linear, MatrixProduct, view
from rewrite.rule import Match, Miss, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from passes.fold_affine.maps import Map
    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import View


@dataclass(frozen=True)
class Way:
    """The operators from a layer to a value.

    Attributes:
        layer: the layer.
        moves: between the two, the lowest first.
    """

    layer: affine.Layer
    moves: tuple[View, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The layer and what is between, in graph order."""
        return (self.layer.node, *(node for move in self.moves for node in move.nodes))

    @property
    def start(self) -> Channels:
        """The layer's output channels in its result."""
        return along(self.layer.node, [affine.channel_axis(self.layer)])


def ways(graph: Graph, mapped: Map) -> Iterator[Way]:
    """The ways down from what a map reads to layers; there are several only through products of matrices."""
    stack: list[tuple[Node, tuple[View, ...]]] = [(mapped.input, ())]
    while stack:
        node, moves = stack.pop()
        found = view(node)
        factors = _factors(graph, found) if not mapped.dims and not mapped.shifts else ()
        if factors:
            assert found is not None
            stack.extend((factor, (found, *moves)) for factor in reversed(factors))
        elif isinstance(found, (Convolution, Linear)):
            yield Way(found, moves)
        elif isinstance(found, Move) and len(moves) < FARTHEST and passes(found, mapped):
            stack.append((found.input, (found, *moves)))


def _factors(graph: Graph, found: View | None) -> tuple[Node, ...]:
    """The operands of a product of two matrices that both vary, any of which may take a number."""
    if isinstance(found, MatrixProduct):
        operands = (found.left, found.right)
    elif isinstance(found, Linear) and found.bias is None and not graph.is_constant(found.weight):
        operands = (found.input, found.weight)
    else:
        return ()
    return () if operands[0] is operands[1] else operands


@dataclass(frozen=True)
class Behind(FoldMap, abstract=True):
    """Fold a map into the layer before it. Subclasses say what is a map."""

    keeps = (Convolution, Linear, MatrixProduct)

    def look(self, graph: Graph, mapped: Map) -> Match | Miss | None:
        """The match of a map; the miss of the first way to a layer where there is none."""
        first: Miss | None = None
        for way in ways(graph, mapped):
            found = self._along(graph, mapped, way)
            if isinstance(found, Match):
                return found
            first = first or found
        # what a concatenation joins is the concern of a rule of its own
        return first or (None if joined(mapped) is not None else self.without_layer(graph, mapped))

    def without_layer(self, graph: Graph, mapped: Map) -> Miss | None:
        """The miss of a map between which and a layer something stands; a number is part of too much to be one."""
        found = obstruction(graph, mapped.input) if mapped.dims else None
        if found is None:
            return None
        refusal = mapped.refusal(graph) or found.refusal(mapped.what, mapped.size, converted=True)
        return Miss(self.name, mapped.node, refusal, (found.layer.node, *mapped.view.nodes))

    def _along(self, graph: Graph, mapped: Map, way: Way) -> Match | Miss | None:
        refusal = mapped.refusal(graph) or affine.layer_refusal(graph, way.layer)
        channels = None
        if refusal is None:
            channels = _arrived(way)
            if channels is None or any(channels.has(dim) and not channels.pure(dim) for dim in mapped.dims):
                return self.without_layer(graph, mapped)
            if not all(channels.has(dim) for dim in mapped.dims):
                refusal = self.misaligned(mapped, way)
                if refusal is None:
                    return None
        refusal = refusal or strides_refusal(mapped.input, mapped.node)
        found = refusal or region(mapped, way.layer.node, way.start, way.moves)
        # where others read the mapped channels too that is the reason, whatever the result would share memory with
        if not isinstance(found, Refusal):
            found = sharing_refusal(mapped.input, mapped.node) or found
        if isinstance(found, Refusal):
            return Miss(self.name, mapped.node, found, (*way.nodes, *mapped.view.nodes))
        captures = {"mapped": mapped, "layer": way.layer, "channels": channels, "region": found}
        return Match(self, found.nodes, found.outputs, captures)

    def misaligned(self, mapped: Map, way: Way) -> Refusal | None:
        """Why a map is not one of the layer's channels; None where nobody would expect it."""
        return None

    def rewrite(self, match: Match, g: Builder) -> Sequence[Node]:
        """The layer with other weights, then what was between."""
        mapped, layer, where = match.mapped, match.layer, match.region
        assert isinstance(where, Region)
        scale, shift = mapped.coefficients(g)
        if scale is not None:
            scale = spread(g, scale, mapped.dims, match.channels, 1.0, layer.weight)
        if shift is not None:
            shift = spread(g, shift, mapped.dims, match.channels, 0.0, layer.weight)
        return where.replay(g, {layer.node: affine.mapped(g, layer, scale, shift)}, mapped)


def _arrived(way: Way) -> Channels | None:
    """Where the layer's channels are at the end of a way, or before the first product of matrices on it."""
    channels: Channels | None = way.start
    for move in way.moves:
        if not isinstance(move, Move):
            break
        channels = through(channels, move) if channels is not None else None
    return channels
