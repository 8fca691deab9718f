"""Building the two sides of a hoisted pool: averages of what a layer reads, and the kernel that goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.fx import Node

    from passes.hoist_pooling.extent import Extent
    from rewrite.fragment import Builder
    from rewrite.ops import Convolution

aten = torch.ops.aten

_PLAIN = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


def averaged(g: Builder, x: Node, extents: Mapping[int, Extent]) -> Node:
    """``x`` with the positions of each run averaged, along the given dimensions.

    Means, not sums: they stay in the range of what they average, so that 16-bit values do not overflow.
    """
    for dim, extent in extents.items():
        x = _cut(g, x, dim, extent)
    whole = [dim for dim, extent in extents.items() if extent.is_mean]
    if whole:
        x = g(aten.mean.dim, x, whole, True)
    for dim, extent in extents.items():
        if extent.repeats and dim not in whole:
            x = _runs(g, x, dim, extent)
    return x


def _cut(g: Builder, x: Node, dim: int, extent: Extent) -> Node:
    if extent.is_whole(int(value(x).shape[dim])):
        return x
    last = extent.start + extent.step * (extent.read - 1)
    return g(aten.slice.Tensor, x, dim, extent.start, last + 1, extent.step)


def _runs(g: Builder, x: Node, dim: int, extent: Extent) -> Node:
    end = extent.low + extent.period * extent.repeats
    inner = g(aten.slice.Tensor, x, dim, extent.low, end)
    if extent.period == 1:
        inner = g(aten.mean.dim, inner, [dim], True)
    else:
        inner = g(aten.mean.dim, g(aten.unflatten.int, inner, dim, [extent.repeats, extent.period]), [dim])
    parts = [inner]
    if extent.low:
        parts.insert(0, g(aten.slice.Tensor, x, dim, 0, extent.low))
    if extent.high:
        parts.append(g(aten.slice.Tensor, x, dim, end, extent.read))
    return g(aten.cat.default, parts, dim) if len(parts) > 1 else inner


def coefficients(g: Builder, conv: Convolution, extents: Mapping[int, Extent]) -> Node:
    r"""The kernel over averaged positions that gives the mean output: ``[O, C / groups, *positions]``.

    The sum of a convolution's outputs is the product of its input with the adjoint of the convolution, applied to ones.
    The adjoint of a convolution is the transposed one and the other way round; over the reduced extent it has a
    coefficient for each run, which is multiplied by the run's share in the mean. A dimension that is not pooled keeps
    its taps.
    """
    shape = [int(n) for n in value(conv.weight).shape]
    kernel = conv.weight
    if not all(extent.is_mean and extent.taps == 1 for extent in extents.values()):
        kernel = g(aten.reshape.default, kernel, _flat(conv, shape))
        kernel = (_adjoint_of_transposed if conv.transposed else _adjoint)(g, conv, kernel, extents)
    kernel = _shared(g, kernel, extents)
    taps = [int(n) for n in value(kernel).shape[2:]]
    if not conv.transposed:
        return g(aten.reshape.default, kernel, [*shape[:2], *taps])
    per_group = shape[0] // conv.groups
    kernel = g(aten.reshape.default, kernel, [conv.groups, per_group, shape[1], *taps])
    return g(aten.reshape.default, g(aten.transpose.int, kernel, 1, 2), [conv.groups * shape[1], per_group, *taps])


def _flat(conv: Convolution, shape: Sequence[int]) -> list[int]:
    """A kernel's shape with every pair of channels a filter of its own over one channel."""
    pairs = shape[0] * shape[1]
    return [pairs, 1, *shape[2:]] if conv.transposed else [1, pairs, *shape[2:]]


def _adjoint(g: Builder, conv: Convolution, kernel: Node, extents: Mapping[int, Extent]) -> Node:
    """The transposed convolution of ones, cut to the positions that there are: ``[1, O * C / groups, *positions]``."""
    axes = [extents.get(dim) for dim in range(2, conv.dims + 2)]
    ones = g(aten.new_full.default, kernel, [1, 1, *(a.reduced_outputs if a else 1 for a in axes)], 1.0)
    stride, dilation = [a.stride if a else 1 for a in axes], [a.dilation if a else 1 for a in axes]
    nothing = [0] * conv.dims
    spread = g(_TRANSPOSED[conv.dims - 1], ones, kernel, None, stride, nothing, nothing, 1, dilation)
    margins: list[int] = []
    for axis, length in zip(axes, value(spread).shape[2:], strict=True):
        margins[:0] = (-axis.padding, axis.positions + axis.padding - int(length)) if axis else (0, 0)
    return g(aten.constant_pad_nd.default, spread, margins) if any(margins) else spread


def _adjoint_of_transposed(g: Builder, conv: Convolution, kernel: Node, extents: Mapping[int, Extent]) -> Node:
    """The convolution of ones, ``[1, C * O / groups, *positions]``; every dimension is pooled."""
    axes = [extents[dim] for dim in range(2, conv.dims + 2)]
    ones = g(aten.new_full.default, kernel, [1, 1, *(a.reduced_outputs for a in axes)], 1.0)
    stride, padding, dilation = ([getattr(a, name) for a in axes] for name in ("stride", "padding", "dilation"))
    met = g(_PLAIN[conv.dims - 1], ones, kernel, None, stride, padding, dilation)
    for dim, axis in enumerate(axes, 2):
        if int(value(met).shape[dim]) > axis.positions:  # an output padding of a stride or more
            met = g(aten.slice.Tensor, met, dim, 0, axis.positions)
    return met


def _shared(g: Builder, kernel: Node, extents: Mapping[int, Extent]) -> Node:
    """Each coefficient times the share of its run in the mean over the outputs."""
    for dim, extent in extents.items():
        single = 1 / extent.outputs
        if extent.low == extent.high == 0 or not extent.repeats:
            factor = single * max(1, extent.repeats)
            kernel = kernel if factor == 1 else g(aten.mul.Tensor, kernel, factor)
            continue
        inner = g(aten.new_full.default, kernel, [extent.period], single * extent.repeats)
        shares = g(aten.constant_pad_nd.default, inner, [extent.low, extent.high], single)
        behind = [1] * (value(kernel).dim() - dim - 1)
        kernel = g(aten.mul.Tensor, kernel, g(aten.reshape.default, shares, [-1, *behind]))
    return kernel


def convolved(g: Builder, conv: Convolution, x: Node, kernel: Node, bias: Node | None, pooled: Mapping[int, Extent],
              groups: int) -> Node:  # fmt: skip
    """A plain convolution with ``kernel``, as ``conv`` is along the dimensions that are not pooled."""
    kept = [dim not in pooled for dim in range(2, conv.dims + 2)]
    stride = [s if keep else 1 for s, keep in zip(conv.stride, kept, strict=True)]
    dilation = [d if keep else 1 for d, keep in zip(conv.dilation, kept, strict=True)]
    padding = [low if keep else 0 for (low, _), keep in zip(conv.padding, kept, strict=True)]
    extra = [high - low if keep else 0 for (low, high), keep in zip(conv.padding, kept, strict=True)]
    if any(extra):
        # 'same' with an even kernel: one more zero behind than before
        x = g(aten.constant_pad_nd.default, x, [amount for more in reversed(extra) for amount in (0, more)])
    return g(_PLAIN[conv.dims - 1], x, kernel, bias, stride, padding, dilation, groups)
