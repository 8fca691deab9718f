"""The operators of a convolution in the frequency domain: spectra, their products, and the way back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.reparameterize.embed import spread_taps
from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.ops import Convolution

aten = torch.ops.aten


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is transformed in: 16-bit types have no transform on a CPU, and too few digits everywhere."""
    return dtype if dtype == torch.float64 else torch.float32


def spectrum(g: Builder, conv: Convolution, periods: Sequence[int], lows: Sequence[int]) -> Node:
    """The spectrum of the kernel, such that products with that of the input give a correlation, weight algebra.

    Tap ``i`` stands at ``low - dilation * i`` on the circle, so that output 0 comes first.

    Returns:
        ``[O, *frequencies]`` for one input channel in each group, else ``[groups * frequencies, C / groups,
        O / groups]``.
    """
    kernel = affine.cast(g, conv.weight, computing_dtype(value(conv.weight).dtype))
    dims = list(range(2, conv.dims + 2))
    for dim, step in zip(dims, conv.dilation, strict=True):
        kernel = spread_taps(g, kernel, dim, step)
    reaches = [int(size) for size in value(kernel).shape[2:]]
    kernel = g(aten.flip.default, kernel, dims)
    behind = [amount for dim in reversed(range(conv.dims)) for amount in (0, periods[dim] - reaches[dim])]
    kernel = g(aten.constant_pad_nd.default, kernel, behind)
    shifts = [low - reach + 1 for low, reach in zip(lows, reaches, strict=True)]
    kernel = g(aten.roll.default, kernel, shifts, dims)
    found = forward(g, kernel, periods)
    shape = [int(size) for size in value(found).shape]
    if shape[1] == 1:
        return g(aten.reshape.default, found, [shape[0], *shape[2:]])
    groups, frequencies = conv.groups, math.prod(shape[2:])
    found = g(aten.reshape.default, found, [groups, shape[0] // groups, shape[1], frequencies])
    found = g(aten.permute.default, found, [0, 3, 2, 1])
    return g(aten.reshape.default, found, [groups * frequencies, shape[1], shape[0] // groups])


def forward(g: Builder, x: Node, periods: Sequence[int]) -> Node:
    """The spectrum of real numbers along the last dimensions, with zeros behind them up to the periods."""
    if len(periods) == 1:
        return g(aten.fft_rfft.default, x, periods[0], -1)
    return g(aten.fft_rfftn.default, x, list(periods), list(range(-len(periods), 0)))


def backward(g: Builder, x: Node, periods: Sequence[int]) -> Node:
    """The real numbers of a spectrum."""
    if len(periods) == 1:
        return g(aten.fft_irfft.default, x, periods[0], -1)
    return g(aten.fft_irfftn.default, x, list(periods), list(range(-len(periods), 0)))


def product(g: Builder, x: Node, kernel: Node, conv: Convolution) -> Node:
    """The spectrum of the outputs, ``[N, O, *frequencies]``.

    Args:
        g: builds it.
        x: the spectrum of the input, ``[N, C, *frequencies]``.
        kernel: as :func:`spectrum` gives it.
        conv: whose channels and groups it has.
    """
    outputs, inputs, groups = conv.out_channels, conv.in_channels, conv.groups
    shape = [int(size) for size in value(x).shape[2:]]
    if inputs == groups:
        if outputs == inputs:
            return g(aten.mul.Tensor, x, kernel)
        x = g(aten.unsqueeze.default, x, 2)
        y = g(aten.mul.Tensor, x, g(aten.reshape.default, kernel, [groups, outputs // groups, *shape]))
        return g(aten.reshape.default, y, [-1, outputs, *shape])
    frequencies = math.prod(shape)
    x = g(aten.reshape.default, x, [-1, groups, inputs // groups, frequencies])
    x = g(aten.permute.default, x, [1, 3, 0, 2])
    x = g(aten.flatten.using_ints, x, 0, 1)
    y = g(aten.bmm.default, x, kernel)
    y = g(aten.unflatten.int, y, 0, [groups, frequencies])
    y = g(aten.permute.default, y, [2, 0, 3, 1])
    return g(aten.reshape.default, y, [-1, outputs, *shape])
