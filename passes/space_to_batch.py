"""A dilated convolution as an undilated one over the phases of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal, convolve, sizes_refusal, spatial_sizes
from rewrite.ops import Convolution, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class SpaceToBatch(Rule):
    r"""Compute a dilated convolution as an undilated one, with the phases of its input as images of their own.

    .. math:: y_{dv+r} = b + \sum_i W_i\, x_{d(v+i)+r} = (W * x_{r::d})_v + b,\quad 0 \le r < d

    the polyphase identity, with which DeepLab (Chen et al. 2017) introduced dilated convolutions. The input is padded
    with its own zeros and with more behind, to whole multiples of ``d``; outputs that read these are cut off. So every
    output sums the same products, for any size, and non-finite values go where they went.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a dilated convolution"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each dilated convolution among ``dirty``."""
        for node in dirty:
            conv = view_as(node, Convolution)
            axes = [] if conv is None else _dilated(conv)
            if conv is None or not axes:
                continue
            refusal = convolution_refusal(conv) or sizes_refusal(conv.input)
            if refusal is None and any(conv.stride[d] > 1 for d in axes):
                refusal = Refusal("the convolution is dilated and strided along one dimension", node, "set stride=1")
            if refusal is not None:
                yield Miss(self.name, node, refusal, (node,))
            else:
                yield Match(self, (node,), (node,), {"conv": conv, "axes": axes})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """Phases to the batch, the convolution, and back."""
        conv: Convolution = match.conv
        n, phases = conv.dims, [conv.dilation[d] if d in match.axes else 1 for d in range(conv.dims)]
        outputs = spatial_sizes(conv.node)
        # a dilated dimension brings its own zeros, and those behind that make its phases equally long
        padding = [pair if step == 1 else (0, 0) for pair, step in zip(conv.padding, phases, strict=True)]
        x, lengths = _padded(g, conv, phases)
        parts = [part for pair in zip(lengths, phases, strict=True) for part in pair]
        x = g(aten.reshape.default, x, [-1, conv.in_channels, *parts])
        x = g(aten.permute.default, x, [0, *range(3, 2 * n + 2, 2), 1, *range(2, 2 * n + 2, 2)])
        x = g(aten.reshape.default, x, [-1, conv.in_channels, *lengths])
        y = convolve(g, x, conv.weight, conv.bias, stride=conv.stride, padding=padding, dilation=[1] * n,
                     groups=conv.groups)  # fmt: skip
        lengths = list(spatial_sizes(y))
        y = g(aten.reshape.default, y, [-1, *phases, conv.out_channels, *lengths])
        y = g(aten.permute.default, y, [0, n + 1, *(d for axis in range(n) for d in (n + 2 + axis, 1 + axis))])
        whole = [length * step for length, step in zip(lengths, phases, strict=True)]
        y = g(aten.reshape.default, y, [-1, conv.out_channels, *whole])
        for d, (size, wanted) in enumerate(zip(whole, outputs, strict=True), start=2):
            y = y if size == wanted else g(aten.slice.Tensor, y, d, 0, wanted)
        return y


def _dilated(conv: Convolution) -> list[int]:
    """The dimensions along which the taps of a convolution are apart."""
    return [d for d in range(conv.dims) if conv.dilation[d] > 1 and conv.kernel[d] > 1]


def _padded(g: Builder, conv: Convolution, phases: Sequence[int]) -> tuple[Node, list[int]]:
    """The input with zeros such that each phase is equally long, and the length of a phase, along each dimension."""
    amounts, lengths = [], []
    for size, (low, high), step in zip(spatial_sizes(conv.input), conv.padding, phases, strict=True):
        if step == 1:
            amounts.append((0, 0))
            lengths.append(size)
            continue
        length = -(-(size + low + high) // step)
        amounts.append((low, length * step - size - low))
        lengths.append(length)
    if not any(amount for pair in amounts for amount in pair):
        return conv.input, lengths
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return g(aten.constant_pad_nd.default, conv.input, flat), lengths
