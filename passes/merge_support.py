"""An inception mixer, depthwise convolutions over channel pieces and pieces that pass through, as one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from passes import affine
from passes.convolve import convolution_refusal, convolve
from passes.reparameterize.embed import embedded
from passes.reparameterize.kernels import Taps, taps_of, union
from rewrite.ops import Concatenation, Convolution, Piece, Slice, value, view, view_as
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """One input of the concatenation.

    Attributes:
        source: what the channels are a piece of.
        start, stop: which channels.
        conv: the convolution of them, None where they pass through.
        nodes: the piece and the convolution.
    """

    source: Node
    start: int
    stop: int
    conv: Convolution | None
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class MergeSupport(Rule):
    r"""Merge depthwise convolutions of channel pieces, and pieces that pass through, into one depthwise convolution.

    .. math:: W[c, D_b + d_b i] = W_b[c, i] \text{ for the channels } c \text{ of branch } b,\quad W[c] = \delta
        \text{ for those that pass through}

    on the smallest kernel that holds the taps of all, each at its own offset. The mixer of an InceptionNeXt (Yu et al.
    2024) in its canonical form; :class:`~passes.split_support.SplitSupport` is the inverse. There are more
    multiply-accumulates and no copies, so it is a choice. A tap of zero times an infinite or missing input is NaN,
    which the branches would not have given; so the outputs are equal for finite inputs.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a concatenation of depthwise convolutions over pieces of one input"
    keeps = (Convolution,)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each concatenation of such branches among ``dirty``."""
        for node in dirty:
            cat = view_as(node, Concatenation)
            parts = _parts(cat) if cat is not None and cat.dim == 1 else []
            if not any(part.conv is not None for part in parts):
                continue
            nodes = tuple(sorted({node, *(inner for part in parts for inner in part.nodes)}))
            refusal = _refusal(graph, node, parts)
            if refusal is None:
                taps = _union(parts)
                if taps is not None:
                    yield Match(self, nodes, (node,), {"parts": parts, "taps": taps})
                    continue
                refusal = Refusal("the sizes of the branches agree for some inputs only", node,
                                  "give its input one size, with the batch alone dynamic")  # fmt: skip
            yield Miss(self.name, node, refusal, nodes)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """One convolution."""
        parts: list[Part] = match.parts
        taps: list[Taps] = match.taps
        model = next(part.conv for part in parts if part.conv is not None)
        kernels = [embedded(g, _kernel(g, part, model), _taps(part, model.dims), taps) for part in parts]
        bias = None
        if any(part.conv is not None and part.conv.bias is not None for part in parts):
            bias = g(aten.cat.default, [_bias(g, part, model) for part in parts])
        x, channels = parts[0].source, parts[-1].stop - parts[0].start
        if channels < int(value(x).shape[1]):
            x = g(aten.slice.Tensor, x, 1, parts[0].start, parts[-1].stop)
        y = convolve(g, x, g(aten.cat.default, kernels), bias, stride=model.stride, groups=channels,
                     padding=[(tap.low, tap.high) for tap in taps], dilation=[tap.step for tap in taps])  # fmt: skip
        return y


def _parts(cat: Concatenation) -> list[Part]:
    """The inputs of a concatenation, where all are channels of one value or depthwise convolutions of such."""
    parts = [_part(node) for node in cat.inputs]
    found = [part for part in parts if part is not None]
    alike = len(found) == len(parts) > 1 and len({part.source for part in found}) == 1
    return found if alike else []


def _part(node: Node) -> Part | None:
    conv = view_as(node, Convolution)
    if conv is not None and not conv.groups == conv.in_channels == conv.out_channels:
        return None
    piece = view(node if conv is None else conv.input)
    own = () if conv is None else (node,)
    if isinstance(piece, Piece) and piece.dim == 1:
        sizes = [tensor.shape[1] for tensor in piece.nodes[0].meta["val"]]
        if not all(isinstance(size, int) for size in sizes):
            return None
        start = sum(sizes[: piece.index])
        return Part(piece.input, start, start + sizes[piece.index], conv, (*piece.nodes, *own))
    if isinstance(piece, Slice) and piece.dim == 1 and piece.step == 1:
        count: Any = value(piece.input).shape[1]
        if all(bound is None or isinstance(bound, int) for bound in (count, piece.start, piece.end)):
            start, stop, _ = slice(piece.start, piece.end).indices(count)
            return Part(piece.input, start, stop, conv, (piece.node, *own))
    return None


def _refusal(graph: Graph, cat: Node, parts: Sequence[Part]) -> Refusal | None:
    convs = [part.conv for part in parts if part.conv is not None]
    for conv in convs:
        refusal = convolution_refusal(conv) or affine.layer_refusal(graph, conv)
        if refusal is not None:
            return refusal
    strides = {conv.stride for conv in convs}
    if len(strides) > 1:
        return Refusal(f"the branches have different strides, {' and '.join(map(str, sorted(strides)))}", cat,
                       "give all of them one stride")  # fmt: skip
    if any(a.stop != b.start for a, b in pairwise(parts)):
        return Refusal("the branches are not in the order of their channels", cat,
                       f"let {called(cat)} put them in this order")  # fmt: skip
    return None


def _taps(part: Part, dims: int) -> list[Taps]:
    return [Taps()] * dims if part.conv is None else taps_of(part.conv)


def _union(parts: Sequence[Part]) -> list[Taps] | None:
    """The taps of the merged kernel along each dimension."""
    model = next(part.conv for part in parts if part.conv is not None)
    found = []
    sizes: list[Any] = list(value(parts[0].source).shape[2:])
    for d, (stride, size) in enumerate(zip(model.stride, sizes, strict=True)):
        taps = union([_taps(part, model.dims)[d] for part in parts], stride, size if isinstance(size, int) else None)
        if taps is None:
            return None
        found.append(taps)
    return found


def _kernel(g: Builder, part: Part, model: Convolution) -> Node:
    if part.conv is not None:
        return part.conv.weight
    return g(aten.new_ones.default, model.weight, [part.stop - part.start, 1, *[1] * model.dims])


def _bias(g: Builder, part: Part, model: Convolution) -> Node:
    if part.conv is not None and part.conv.bias is not None:
        return part.conv.bias
    return g(aten.new_zeros.default, model.weight, [part.stop - part.start])
