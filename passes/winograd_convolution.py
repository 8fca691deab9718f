"""A 3x3 convolution by Winograd's algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.convolve import convolution_refusal, sizes_refusal, spatial_sizes
from rewrite.arithmetic import ceil_div
from rewrite.ops import Convolution, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule
from rewrite.winograd import INPUT, KERNEL, OUTPUT, OUTPUTS, POINTS, PRODUCT, SPACING, TAPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class WinogradConvolution(Rule):
    r"""Compute a convolution with 3x3 taps on tiles of 4x4 outputs by 36 products for each pair of channels.

    .. math:: y = V_4^T \bigl[(V_3\, g\, V_3^T) \odot (V_6^{-T} d\, V_6^{-1})\bigr] V_4

    see :mod:`rewrite.winograd`: a quarter of the usual products (Lavin and Gray, Fast Algorithms for Convolutional
    Neural Networks, 2016). The transformed kernel is weight algebra: it is folded, and takes four times the kernel's
    memory. Faster only with kernels that do it in one pass, as those of :mod:`codegen.native`, so what is measured
    decides.

    Rounding is two to five times that of the sum over taps, and belongs to whole tiles: an output that would be zero
    may not be, and what is infinite or NaN is NaN in all tiles that read it.

    Attributes:
        channels: the least number of channels on either side.
    """

    fidelity = Fidelity.NORMWISE
    choice = True
    caution = (
        "a tile of 4x4 outputs rounds at the scale of the largest value that it reads: what is zero in the model's "
        "result may not be, and NaN and infinities reach the whole tile"
    )
    starts = "a 3x3 convolution"

    channels: int = 16

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each 3x3 convolution over images among ``dirty``."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.kernel != (TAPS, TAPS):
                continue
            yield self.at(node, self._refusal(graph, conv), conv=conv)

    def _refusal(self, graph: Graph, conv: Convolution) -> Refusal | None:
        general = convolution_refusal(conv) or affine.layer_refusal(graph, conv) or sizes_refusal(conv.input)
        if general is not None:
            return general
        if value(conv.node).dtype not in (torch.float32, torch.float64):
            return Refusal(f"{value(conv.node).dtype} has too few digits for its transforms", conv.node)
        if conv.groups != 1:
            return Refusal(f"it has {conv.groups} groups", conv.node)
        if {*conv.stride, *conv.dilation} != {1}:
            return Refusal("its stride or dilation is not 1", conv.node)
        if min(conv.in_channels, conv.out_channels) < self.channels:
            return Refusal(f"it has fewer than {self.channels} channels on one side", conv.node)
        if 0 in value(conv.node).shape[2:]:
            return Refusal("its result is empty", conv.node)
        return None

    def rewrite(self, match: Match, g: Builder) -> Node:
        """Overlapping tiles, their transform, products, and the way back."""
        conv: Convolution = match.conv
        x, outputs = conv.input, spatial_sizes(conv.node)
        sides = list(zip(conv.padding, spatial_sizes(conv.input), outputs, strict=True))
        pads = [(low, int(ceil_div(out, OUTPUTS)) * OUTPUTS + TAPS - 1 - size - low) for (low, _), size, out in sides]
        x = g(aten.constant_pad_nd.default, x, [amount for pair in reversed(pads) for amount in pair])
        for dim in (2, 3):
            x = g(aten.unfold.default, x, dim, POINTS, OUTPUTS)
        inverse = g(aten.linalg_inv.default, _evaluation(g, conv, POINTS))
        spread, back = _evaluation(g, conv, TAPS), _evaluation(g, conv, OUTPUTS)
        spectrum = g(aten.einsum.default, KERNEL, [spread, conv.weight, spread])
        y = g(aten.einsum.default, INPUT, [inverse, x, inverse])
        y = g(aten.einsum.default, PRODUCT, [y, spectrum])
        y = g(aten.einsum.default, OUTPUT, [back, y, back])
        y = g(aten.reshape.default, y, [-1, conv.out_channels, *(int(ceil_div(n, OUTPUTS)) * OUTPUTS for n in outputs)])
        for dim, size in enumerate(outputs, start=2):
            y = g(aten.slice.Tensor, y, dim, 0, size)
        if conv.bias is not None:
            return g(aten.add.Tensor, y, g(aten.reshape.default, conv.bias, [-1, 1, 1]))
        # a tensor of its own, as the convolution's result is
        return g(aten.clone.default, y, memory_format=torch.contiguous_format)


def _evaluation(g: Builder, conv: Convolution, degree: int) -> Node:
    """``[6, degree]``: how a polynomial of so many coefficients is evaluated at all points, in the kernel's dtype."""
    steps = g(aten.cumsum.default, g(aten.new_full.default, conv.weight, [POINTS - 1], SPACING), 0)
    points = g(aten.sub.Tensor, steps, POINTS / 2 * SPACING)
    finite = g(aten.linalg_vander.default, points, N=degree)
    infinite = g(aten.constant_pad_nd.default, g(aten.new_ones.default, conv.weight, [1, 1]), [degree - 1, 0])
    return g(aten.cat.default, [finite, infinite])
