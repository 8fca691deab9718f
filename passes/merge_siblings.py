"""Merge layers that read one input into a layer with the outputs of all."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.costs import groups, sharing_refusal, width
from passes.memory import restored_strides
from passes.stacking import Geometry, stacked
from passes.strided import Copies
from rewrite.flops import Sizes, flops
from rewrite.ops import Concatenation, Convolution, Linear, value, view
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeSiblings(Rule):
    r"""Merge convolutions, or linear layers, of one geometry over one input into one with the outputs of all.

    .. math:: [W_1 x + b_1, \dots, W_L x + b_L] = \mathrm{split}([W_1; \dots; W_L] x + [b_1; \dots; b_L])

    Queries, keys and values of an attention; the 1x1 convolutions at the heads of inception branches; the two kernels
    between which a selective convolution chooses.

    The number of layers falls, and so do the bytes that are read: the input is read once. Floating-point operations
    stay the same, therefore kernels of different sizes are not brought to one size: a 1x1 kernel in a 3x3 one would
    cost nine times as much. The pieces are strided views of the merged result. Elementwise operators, reductions,
    products of matrices and concatenations read them as they are; any other operator may copy its piece first, and so
    does what the model returns. Such copies are counted as read and written, and a layer joins its siblings only where
    they take less than reading the input again.

    To be run when norms and factors behind the layers are folded, and sums of layers merged: each stands in the way of
    those rules.

    Attributes:
        convolutions: convolutions too. Compilers and runtimes compute the activation or the sum behind a convolution
            as part of it, and not behind a piece of a merged one, so by default they are left alone.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "two layers of one kind over one input"

    convolutions: bool = False

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """The matches and misses over each input of a layer among ``dirty``."""
        found = [view(node) for node in dirty]
        layers = [layer for layer in found if isinstance(layer, (Convolution, Linear))]
        for source in dict.fromkeys(layer.input for layer in layers):
            if not graph.is_constant(source):
                yield from self._over(graph, source)

    def _over(self, graph: Graph, source: Node) -> Iterator[Match | Miss]:
        families: dict[Geometry, list[affine.Layer]] = {}
        misses: list[Miss] = []
        layers = [layer for layer in _readers(source) if self.convolutions or isinstance(layer, Linear)]
        for layer in layers:
            refusal = affine.layer_refusal(graph, layer) or _own_refusal(layer)
            if refusal is None:
                families.setdefault(Geometry.of(layer), []).append(layer)
            elif any(Geometry.of(layer) == Geometry.of(other) for other in layers if other is not layer):
                misses.append(Miss(self.name, layer.node, refusal, (layer.node,)))
        sizes = Sizes(graph)
        for family in families.values():
            if len(family) > 1:
                chosen = _choice(graph, family, sizes)
                if isinstance(chosen, tuple):
                    nodes = tuple(layer.node for layer in chosen)
                    yield Match(self, nodes, nodes, {"layers": chosen})
                    return
                misses += [] if chosen is None else [Miss(self.name, family[-1].node, chosen)]
        if not misses and len(families) > 1:
            first, second = (family[0] for family in list(families.values())[:2])
            if isinstance(first, Convolution) and isinstance(second, Convolution):
                refusal = _difference(first, second, sizes)
                misses += [] if refusal is None else [Miss(self.name, second.node, refusal)]
        yield from misses

    def rewrite(self, match: Match, g: Builder) -> tuple[Node, ...]:
        """The merged layer and its pieces."""
        layers = match.layers
        order = _order(layers)
        merged = stacked(g, [layers[i] for i in order], layers[0].input)
        counts = [width(layers[i])[1] for i in order]
        pieces = g(aten.split_with_sizes.default, merged, counts, affine.channel_axis(layers[0]))
        parts = {i: g(operator.getitem, pieces, place) for place, i in enumerate(order)}
        return tuple(restored_strides(g, layer.node, parts[i]) for i, layer in enumerate(layers))


def _readers(source: Node) -> list[affine.Layer]:
    found = [view(user) for user in sorted(source.users)]
    return [layer for layer in found if isinstance(layer, (Convolution, Linear)) and layer.input is source]


def _own_refusal(layer: affine.Layer) -> Refusal | None:
    """Why a layer joins no others, whatever they are."""
    if groups(layer) > 1:
        return Refusal("the outputs of its groups would not lie together in the merged result", layer.node,
                       f"build {called(layer.node)} with groups=1")  # fmt: skip
    return sharing_refusal(layer)


def _choice(graph: Graph, family: Sequence[affine.Layer], sizes: Sizes) -> tuple[affine.Layer, ...] | Refusal | None:
    """The layers of a family that gain by coming together, in graph order, or why there are none such."""
    first = family[0]
    saved = sizes.elements(first.input) * value(first.input).dtype.itemsize
    copies = [Copies.of(graph, layer.node, affine.channel_axis(layer), sizes) for layer in family]
    taken = [(layer, found) for layer, found in zip(family, copies, strict=True) if found.bytes < saved]
    if sum(found.bytes for _, found in taken) < saved * (len(taken) - 1):
        return tuple(layer for layer, _ in taken)
    readers = dict.fromkeys(reader for found in copies for reader in found.readers)
    if not readers:
        return None
    less, more = saved * (len(family) - 1), sum(found.bytes for found in copies)
    reason = f"merging would save reading {less:,} bytes and copy {more:,} bytes of strided pieces"
    names = " and ".join("the model's caller" if reader.op == "output" else called(reader) for reader in readers)
    return Refusal(reason, next(iter(readers)), f"give {names} what an elementwise operator makes of it")


def _difference(first: Convolution, second: Convolution, sizes: Sizes) -> Refusal | None:
    """Why two convolutions over one input are no siblings; None where nobody would expect it."""
    if first.transposed != second.transposed or value(first.weight).dim() != value(second.weight).dim():
        return None
    if first.stride != second.stride:
        return Refusal(f"the strides differ, {first.stride} and {second.stride}", second.node,
                       f"give {called(second.node)} the stride {first.stride}")  # fmt: skip
    if first.kernel != second.kernel:
        small = min(first, second, key=lambda conv: math.prod(conv.kernel))
        taps = math.prod(map(max, first.kernel, second.kernel))
        before = sum(flops(conv.node, sizes) for conv in (first, second))
        after = sum(flops(conv.node, sizes) // math.prod(conv.kernel) * taps for conv in (first, second))
        reason = f"one kernel of {taps} taps would take {after:,} FLOPs instead of {before:,}"
        return Refusal(reason, small.node)  # a larger window for the small one would take as many
    return Refusal("the convolutions pad or dilate differently", second.node,
                   f"give {called(second.node)} the window of {called(first.node)}")  # fmt: skip


def _order(layers: Sequence[affine.Layer]) -> list[int]:
    """The places of layers in the merged one: as a concatenation has them that reads all of them, else in order."""
    for user in layers[0].node.users:
        found = view(user)
        if isinstance(found, Concatenation) and all(found.inputs.count(layer.node) == 1 for layer in layers):
            return sorted(range(len(layers)), key=lambda i: found.inputs.index(layers[i].node))
    return list(range(len(layers)))
