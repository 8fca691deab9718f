r"""Affine maps before layers, into their weights and biases.

.. math:: W (a x + s) + b = (W a) x + (W s + b)

The map goes where all that read it are layers; operators that only move channels may stand between. What is left is
one operator less. A convolution that pads with zeros sees them where the map would have given ``s``, so it takes a
scale and no shift. A shift of the model's input that takes most of it away stays too
(:mod:`passes.fold_affine.cancellation`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.fx import Node

from passes import affine
from passes.fold_affine.cancellation import cancellation
from passes.fold_affine.channels import Channels, Move, along, through
from passes.fold_affine.folding import FoldMap
from passes.fold_affine.moves import passes
from passes.fold_affine.region import results
from passes.fold_affine.vectors import gather
from rewrite.ops import AveragePool, Convolution, Linear, Pad, Sum, same_type, value, view, view_as
from rewrite.provenance import called, function_name
from rewrite.rule import Match, Miss, Refusal, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from passes.fold_affine.maps import Map, Vector
    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import View

aten = torch.ops.aten
FARTHEST = 12
"""So many operators that move channels may stand between a map and all the layers that read it."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads a map.

    Attributes:
        layer: the layer.
        channels: where the channels of the map are in the layer's input.
        coefficient: what the map is multiplied by in sums between.
    """

    layer: affine.Layer
    channels: Channels
    coefficient: float = 1.0

    @property
    def axis(self) -> int:
        """The dimension of its input that holds its channels."""
        return value(self.layer.input).dim() - 1 if isinstance(self.layer, Linear) else 1

    @property
    def aligned(self) -> bool:
        """Whether the channels of the map are the layer's, or some of them, and nowhere else."""
        dims = self.channels.dims
        return not any(self.channels.has(dim) for dim in range(len(dims)) if dim != self.axis) and all(
            isinstance(part.size, int) for part in dims[self.axis]
        )

    @property
    def padded(self) -> bool:
        """Whether zeros are beside its input."""
        return isinstance(self.layer, Convolution) and any(amount for pair in self.layer.padding for amount in pair)


@dataclass
class Readers:
    """All that reads a map.

    Attributes:
        layers: those among it.
        moves: the operators between.
        fills: for those that pad with a constant, the one that the map makes of it, where it is another.
        refusal: why something else reads it too, or none of the layers may.
    """

    layers: list[Reader] = field(default_factory=list)
    moves: list[View] = field(default_factory=list)
    fills: dict[Node, float] = field(default_factory=dict)
    refusal: Refusal | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of all of them."""
        return (*(node for move in self.moves for node in move.nodes), *(reader.layer.node for reader in self.layers))


def readers(mapped: Map) -> Readers:
    """What reads a map, as far as it is layers and what moves channels to them."""
    found = Readers()
    stack = [(mapped.node, along(mapped.node, mapped.dims), 1.0)]
    while stack:
        node, channels, coefficient = stack.pop()
        for user in node.users:
            views = results(user)
            layer = views[0] if len(views) == 1 else None
            if isinstance(layer, (Convolution, Linear)) and layer.operands.count(node) == 1 and layer.input is node:
                found.layers.append(Reader(layer, channels, coefficient))
                continue
            fresh = [move for move in views if move not in found.moves]
            onward = [_through(mapped, channels, coefficient, move, node) for move in fresh]
            if len(onward) < max(len(views), 1) or None in onward or len(found.moves) > FARTHEST:
                found.refusal = found.refusal or read_elsewhere(node, user)
                continue
            for move in views:
                fill = new_fill(move, mapped, coefficient)
                if fill is not None:
                    found.fills[move.node] = fill
                elif not isinstance(move, Sum) and not passes(move, mapped):
                    found.refusal = found.refusal or _blocked(mapped, move, user)
            found.moves.extend(views)
            stack.extend((move.node, *after) for move, after in zip(views, onward, strict=True) if after is not None)
    return found


def _through(
    mapped: Map, channels: Channels, coefficient: float, move: View, node: Node
) -> tuple[Channels, float] | None:
    """Where the channels of ``node`` are behind a move that reads it, and times what; None where it mixes them.

    A shift stays one when something is added to it, a scale does not.
    """
    if isinstance(move, Sum):
        terms = [term for term in move.terms if term.node is node]
        alone = len(terms) == 1 and same_type(node, move.node) and not mapped.scales
        return (channels, coefficient * terms[0].coefficient) if alone else None
    after = through(channels, move)
    return None if after is None else (after, coefficient)


def new_fill(move: View, mapped: Map, coefficient: float) -> float | None:
    """With which constant to pad before a map of plain numbers instead of behind it; None where it does not matter."""
    if mapped.numbers is None or not isinstance(move, Pad) or passes(move, mapped):
        return None
    scale, shift = mapped.numbers
    return (move.fill - coefficient * shift) / scale if scale else None


def _blocked(mapped: Map, move: View, reader: Node) -> Refusal:
    """Why a map does not pass a move."""
    if isinstance(move, (Pad, AveragePool)):
        return Refusal(f"{function_name(reader)} adds constants behind {mapped.what}, which {mapped.what} would move",
                       reader, f"let {called(reader)} come before {mapped.what}")  # fmt: skip
    return Refusal(f"{function_name(reader)} stands between {mapped.what} and the layer", reader,
                   f"apply {mapped.what} behind {called(reader)}")  # fmt: skip


@dataclass(frozen=True)
class Before(FoldMap, abstract=True):
    """Fold a map into the layers that read it. Subclasses say what is a map."""

    keeps: ClassVar[tuple[type[View], ...] | None] = (Convolution, Linear)

    def candidates(self, dirty: Iterable[Node]) -> Iterable[Node]:
        """The maps that a layer reads, where one of them is among ``dirty``."""
        return dict.fromkeys(itertools.chain.from_iterable(map(_above, dirty)))

    def look(self, graph: Graph, mapped: Map) -> Match | Miss | None:
        """The match or miss of a map; None where no layer reads it."""
        found = readers(mapped)
        astray = next((reader for reader in found.layers if not reader.aligned), None)
        misaligned = None if astray is None else self.misaligned(mapped, astray)
        if not found.layers or (astray is not None and misaligned is None):
            return None
        refusal = mapped.refusal(graph)
        refusal = refusal or _first(affine.layer_refusal(graph, reader.layer) for reader in found.layers)
        refusal = refusal or found.refusal or misaligned
        refusal = refusal or _first(self.unfit(graph, mapped, reader) for reader in found.layers)
        refusal = refusal or cancellation(graph, mapped)
        nodes = tuple(sorted({*mapped.view.nodes, *found.nodes}))
        if refusal is not None:
            return Miss(self.name, mapped.node, refusal, nodes)
        outputs = tuple(sorted(reader.layer.node for reader in found.layers))
        return Match(self, nodes, outputs, {"mapped": mapped, "readers": found})

    def unfit(self, graph: Graph, mapped: Map, reader: Reader) -> Refusal | None:
        """Why a layer cannot take a map of its channels."""
        layer = reader.layer
        if not mapped.shifts or not isinstance(layer, Convolution):
            return None
        if layer.transposed:
            return Refusal("the convolution is transposed", layer.node, f"put {mapped.what} right behind it")
        if reader.padded:
            return self.padded(mapped, reader)
        return None

    def misaligned(self, mapped: Map, reader: Reader) -> Refusal | None:
        """Why the channels of a map are not the layer's; None where nobody would expect it, as of positions."""
        if len(mapped.dims) > 1:
            return None
        return Refusal(f"{mapped.what} varies along other dimensions than the layer's channels", reader.layer.node,
                       f"let {mapped.what} vary along dimension {reader.axis} of what the layer reads")  # fmt: skip

    def padded(self, mapped: Map, reader: Reader) -> Refusal | None:
        """Why a map does not pass the zeros beside a layer's input."""
        return Refusal(
            f"the convolution pads with zeros after {mapped.what}, which {mapped.what} would have moved",
            reader.layer.node, f"set padding=0, or put {mapped.what} right behind it",
        )  # fmt: skip

    def rewrite(self, match: Match, g: Builder) -> Sequence[Node]:
        """What was between over what the map read, and the layers with other weights."""
        mapped, found = match.mapped, match.readers
        scale, shift = mapped.coefficients(g)
        layers = {reader.layer.node: reader for reader in found.layers}
        made = {mapped.node: mapped.rest(g)}
        for node in match.nodes:
            if node in mapped.view.nodes:
                continue
            if node in layers:
                made[node] = self.layer(g, layers[node], made[layers[node].layer.input], scale, shift)
            elif node in found.fills:
                pad = view_as(node, Pad)
                assert pad is not None
                flat = [amount for pair in reversed(pad.amounts) for amount in pair]
                made[node] = g(aten.constant_pad_nd.default, made[pad.input], flat, found.fills[node])
            else:
                made[node] = g.again(node, made)
        return [made[node] for node in match.outputs]

    def layer(self, g: Builder, reader: Reader, x: Node, scale: Vector | None, shift: Vector | None) -> Node:
        """A layer over another input that does what the map did."""
        layer, weight, bias = reader.layer, reader.layer.weight, reader.layer.bias
        if scale is not None:
            weight = affine.scaled_inputs(g, layer, gather(g, scale, reader.channels, reader.axis))
        if shift is not None:
            response = affine.constant_response(g, layer, self.shift(g, reader, shift))
            bias = response if bias is None else g(aten.add.Tensor, bias, response)
        return affine.with_weights(g, layer, x, weight, bias)

    def shift(self, g: Builder, reader: Reader, shift: Vector) -> Vector:
        """What a shift adds to the input of a layer."""
        vector = gather(g, shift, reader.channels, reader.axis)
        if reader.coefficient == 1:
            return vector
        return (
            g(aten.mul.Tensor, vector, reader.coefficient) if isinstance(vector, Node) else vector * reader.coefficient
        )


def _above(node: Node) -> Iterator[Node]:
    """A node and, where it is a layer, what it reads, through what moves channels."""
    yield node
    found = view(node)
    if isinstance(found, (Convolution, Linear)):
        yield found.input
        while isinstance(move := view(found.input), Move):
            found = move
            yield found.input


def _first(refusals: Iterable[Refusal | None]) -> Refusal | None:
    return next((refusal for refusal in refusals if refusal is not None), None)
