"""Convolutions and average pools over a field, tap by tap, written from their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rewrite.testing.field import Field


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: one number for each spatial dimension, padding as ``(low, high)``."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, kernel: Sequence[int], bound: dict[str, Any]) -> Geometry:
        """From the arguments of a convolution by their schema names."""
        dims, padding = len(kernel), bound["padding"]
        dilation = per_dimension(bound["dilation"], dims)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pairs = tuple((total // 2, total - total // 2) for total in totals)
        elif padding == "valid":
            pairs = ((0, 0),) * dims
        else:
            pairs = tuple((amount, amount) for amount in per_dimension(padding, dims))
        extra = per_dimension(bound.get("output_padding", 0), dims)
        return cls(per_dimension(bound["stride"], dims), pairs, dilation, bound["groups"], extra)


def per_dimension(setting: Any, dims: int) -> tuple[int, ...]:
    """A setting as one number for each dimension."""
    values = (setting,) if isinstance(setting, int) else tuple(setting)
    return values * dims if len(values) == 1 else values


def convolve(field: Field, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``y[n, o, u] = b[o] + sum_{c, i} w[o, c, i] x[n, c, stride u + dilation i - low]``, zeros outside ``x``."""
    return _batched(field, _convolve, x, weight, bias, geometry)


def convolve_transposed(field: Field, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``y[n, o, stride u + dilation i - low] += w[c, o, i] x[n, c, u]``, and the bias."""
    return _batched(field, _convolve_transposed, x, weight, bias, geometry)


def _batched(field: Field, kernel: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    batched = x.dim() == weight.dim()
    result: Tensor = kernel(field, x if batched else x[None], weight, geometry)
    if bias is not None:
        result = field.reduce(result + bias.reshape(-1, *[1] * (weight.dim() - 2)))
    return result if batched else result[0]


def _convolve(field: Field, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    outputs, kernel, groups = weight.shape[0], weight.shape[2:], geometry.groups
    x = _padded(x, geometry.padding)
    sizes = [(n - d * (k - 1) - 1) // s + 1
             for n, k, d, s in zip(x.shape[2:], kernel, geometry.dilation, geometry.stride, strict=True)]  # fmt: skip
    parts = x.unflatten(1, (groups, -1))
    taps = weight.unflatten(0, (groups, -1))
    total = torch.zeros(x.shape[0], groups, outputs // groups, math.prod(sizes), dtype=torch.int64)
    for tap in itertools.product(*map(range, kernel)):
        places = _window(tap, geometry.stride, geometry.dilation, sizes)
        seen = parts[(slice(None),) * 3 + places].flatten(3)
        total = field.reduce(total + field.matmul(taps[(slice(None),) * 3 + tap], seen))
    return total.reshape(x.shape[0], outputs, *sizes)


def _convolve_transposed(field: Field, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    kernel, groups, sizes = weight.shape[2:], geometry.groups, x.shape[2:]
    reach = [(n - 1) * s + d * (k - 1) + 1
             for n, k, d, s in zip(sizes, kernel, geometry.dilation, geometry.stride, strict=True)]  # fmt: skip
    whole = [length + extra for length, extra in zip(reach, geometry.output_padding, strict=True)]
    parts = x.unflatten(1, (groups, -1)).flatten(3)
    taps = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    total = torch.zeros(x.shape[0], groups, weight.shape[1], *whole, dtype=torch.int64)
    for tap in itertools.product(*map(range, kernel)):
        places = (slice(None),) * 3 + _window(tap, geometry.stride, geometry.dilation, sizes)
        added = field.matmul(taps[(slice(None),) * 3 + tap], parts).unflatten(-1, sizes)
        total[places] = field.reduce(total[places] + added)
    cropped = [slice(low, length - high) for length, (low, high) in zip(whole, geometry.padding, strict=True)]
    return total.flatten(1, 2)[(slice(None),) * 2 + tuple(cropped)]


def _window(
    tap: Sequence[int], stride: Sequence[int], dilation: Sequence[int], sizes: Sequence[int]
) -> tuple[slice, ...]:
    """The elements that one tap meets, one for each position."""
    return tuple(slice(d * i, d * i + s * (n - 1) + 1, s)
                 for i, s, d, n in zip(tap, stride, dilation, sizes, strict=True))  # fmt: skip


def _padded(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    return F.pad(x, [amount for pair in reversed(padding) for amount in pair])


def average(field: Field, x: Tensor, windows: Sequence[Sequence[tuple[int, int, int]]]) -> Tensor:
    """The sum over each window divided by its size.

    Args:
        field: of the elements.
        x: its last dimensions are pooled.
        windows: for each of them and each position ``(start, end, size)``: what is summed, and what counts.
    """
    results = []
    for position in itertools.product(*(range(len(row)) for row in windows)):
        window = [windows[d][i] for d, i in enumerate(position)]
        part = x
        for dim, (start, end, _) in zip(range(-len(windows), 0), window, strict=True):
            part = part.narrow(dim, start, end - start)
        total = field.reduce(part.sum(tuple(range(-len(windows), 0))))
        share = pow(math.prod(size for _, _, size in window), -1, field.prime)
        results.append(field.multiply(total, share))
    pooled: Tensor = torch.stack(results, -1).unflatten(-1, [len(row) for row in windows])
    return pooled


def pool_windows(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, counts_padding: bool) -> Any:
    """The windows of an average pool along one dimension, as :func:`average` takes them."""
    count = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1  # a window has to start inside the input or its left padding
    windows = []
    for u in range(count):
        start = u * stride - padding
        end = min(start + kernel, size + padding)
        inside = max(start, 0), min(end, size)
        windows.append((*inside, end - start if counts_padding else inside[1] - inside[0]))
    return windows


def adaptive_windows(size: int, outputs: int) -> Any:
    """The windows of an adaptive average pool along one dimension."""
    starts = [i * size // outputs for i in range(outputs)]
    ends = [-(-(i + 1) * size // outputs) for i in range(outputs)]
    return [(start, end, end - start) for start, end in zip(starts, ends, strict=True)]
