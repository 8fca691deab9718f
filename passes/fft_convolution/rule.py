"""A convolution with a long kernel by fast Fourier transforms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes import affine
from passes.convolve import convolution_refusal, sizes_refusal, spatial_sizes
from passes.fft_convolution import costs
from passes.fft_convolution.blocks import Blocks, cut_of
from passes.fft_convolution.circle import Circle
from passes.fft_convolution.crossovers import crossovers
from passes.fft_convolution.transforms import backward, computing_dtype, forward, product, spectrum
from passes.reparameterize.kernels import taps_of
from rewrite.ops import Convolution, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.crossover import Crossover
    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

_FEW_TAPS = 16


@dataclass(frozen=True)
class FftConvolution(Rule):
    r"""Compute a convolution as a product of spectra.

    .. math:: y = \mathcal{F}^{-1}(\mathcal{F}(x) \odot \mathcal{F}(\tilde w))_{::s} + b

    with the kernel mirrored and turned around on the smallest circle that holds it, see
    :mod:`passes.fft_convolution.circle`, or, where it is much shorter than a sequence, on many small ones, see
    :mod:`passes.fft_convolution.blocks`. One, two or three dimensions, any stride, dilation, padding and grouping
    (Mathieu, Henaff and LeCun, Fast Training of Convolutional Networks through FFTs, 2014; Fu et al., Simple
    Hardware-Efficient Long Convolutions for Sequence Modeling, 2023). 16-bit types are transformed in float32. The
    spectrum of the kernel is weight algebra: it is folded, and takes more memory than the kernel.

    Made where transforms take fewer operations than the sum over taps, for the sizes of the example. The rounding
    error of each output is as large as that of the largest one, and is not zero where the output would be: a causal
    convolution lets a trace of the future through, of the size of rounding. What is infinite or NaN anywhere is NaN
    everywhere in its row. The program takes no batch of none, for which libraries have no transform, and under autocast
    it gives float32.

    Attributes:
        saving: how many times more operations the sum over taps has to take; 0 transforms wherever that is possible.
    """

    fidelity = Fidelity.NORMWISE
    choice = True
    caution = (
        "transforms round at the scale of the largest value: what is zero in the model's result may not be, and a "
        "causal convolution hears of the future at that scale"
    )
    starts = "a convolution"

    saving: float = 1.0

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution among ``dirty``; nobody expects transforms for a handful of taps."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or math.prod(conv.kernel) < (_FEW_TAPS if self.saving else 2):
                continue
            refusal = convolution_refusal(conv) or affine.layer_refusal(graph, conv) or _size_refusal(conv)
            if refusal is None:
                circles = _circles(conv)
                cut = cut_of(circles)
                refusal = _dearer(conv, circles, cut, self.saving)
                if refusal is None:
                    yield Match(self, (node,), (node,), {"conv": conv, "circles": circles, "cut": cut})
                    continue
            yield Miss(self.name, node, refusal, (node,))

    def rewrite(self, match: Match, g: Builder) -> Node:
        """Forward, product, back, and what the stride leaves of it."""
        conv: Convolution = match.conv
        circles: tuple[Circle, ...] = match.circles
        x = affine.cast(g, conv.input, computing_dtype(value(conv.input).dtype))
        y = _whole(g, conv, circles, x) if match.cut is None else _in_blocks(g, conv, circles[0], match.cut, x)
        for dim, circle in enumerate(circles, start=2):
            y = g(aten.slice.Tensor, y, dim, 0, circle.dense, circle.stride)
        if conv.bias is not None:
            bias = affine.cast(g, conv.bias, value(y).dtype)
            y = g(aten.add.Tensor, y, g(aten.reshape.default, bias, [-1, *[1] * conv.dims]))
        return affine.cast(g, y, value(conv.node).dtype)

    def crossovers(self, match: Match) -> Sequence[Crossover]:
        """From how many taps on transforms take fewer operations, and from which size on."""
        return crossovers(match.conv, match.circles)


def _circles(conv: Convolution) -> tuple[Circle, ...]:
    each = zip(spatial_sizes(conv.input), taps_of(conv), conv.stride, strict=True)
    return tuple(Circle(size, taps, stride) for size, taps, stride in each)


def _size_refusal(conv: Convolution) -> Refusal | None:
    """Why the sizes of a convolution's input keep it from being transformed."""
    refusal, shape = sizes_refusal(conv.input), tuple[Any, ...](value(conv.input).shape)
    if refusal is None and 0 in [size for size in shape if isinstance(size, int)]:
        return Refusal("its input is empty", conv.input)
    return refusal


def _dearer(conv: Convolution, circles: Sequence[Circle], cut: Blocks | None, saving: float) -> Refusal | None:
    """Why transforms do not pay."""
    before, after = costs.direct(conv, circles), costs.least(conv, circles, cut)
    if after * saving < before:
        return None
    return Refusal(f"transforms take {after / 1e6:.4g} million operations for each sample, and its "
                   f"{math.prod(conv.kernel)} taps {before / 1e6:.4g} million", conv.node)  # fmt: skip


def _whole(g: Builder, conv: Convolution, circles: Sequence[Circle], x: Node) -> Node:
    """All outputs at stride 1 from one circle, and more behind them."""
    periods = [circle.period for circle in circles]
    kernel = spectrum(g, conv, periods, [circle.taps.low for circle in circles])
    return backward(g, product(g, forward(g, x, periods), kernel, conv), periods)


def _in_blocks(g: Builder, conv: Convolution, circle: Circle, cut: Blocks, x: Node) -> Node:
    """All outputs at stride 1 from one circle for each block, and more behind them."""
    low = circle.taps.low
    x = g(aten.constant_pad_nd.default, x, [low, cut.padded - circle.size - low])
    x = g(aten.unfold.default, x, 2, cut.period, cut.length)  # [N, C, blocks, period]
    x = g(aten.permute.default, x, [0, 2, 1, 3])
    x = g(aten.flatten.using_ints, forward(g, x, [cut.period]), 0, 1)
    y = backward(g, product(g, x, spectrum(g, conv, [cut.period], [0]), conv), [cut.period])
    y = g(aten.slice.Tensor, y, 2, 0, cut.length)
    y = g(aten.reshape.default, y, [-1, cut.count, conv.out_channels, cut.length])
    y = g(aten.permute.default, y, [0, 2, 1, 3])
    return g(aten.reshape.default, y, [-1, conv.out_channels, cut.count * cut.length])
