"""Depthwise convolutions with many taps as products of matrices: torch has no fast kernel for them in float64.

The reference of every comparison is computed in float64. There torch convolves a 31x31 kernel at a fiftieth of the
speed at which it multiplies matrices, so a row of the image times a Toeplitz matrix of a row of the kernel takes less
time, although most elements of such a matrix are zeros.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Sequence

aten = torch.ops.aten

_FEW_TAPS = 128
"""What torch convolves as quickly."""

_BLOCK = 64
"""How many outputs one matrix makes, along the last dimension."""


def conv(target: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What ``aten.conv1d`` or ``aten.conv2d`` gives for the same arguments.

    Args:
        target: the operator, which is called for all that is not a depthwise convolution of finite numbers in float64
            with many taps.
        args, kwargs: its arguments.
    """
    x, weight, bias, stride, padding, dilation, groups = _bound(*args, **kwargs)
    if isinstance(padding, str) or not _pays(x, weight, groups):
        return target(*args, **kwargs)  # type: ignore[no-any-return]
    dims = weight.dim() - 2
    settings = [_each(setting, dims) for setting in (stride, padding, dilation)]
    formats = [torch.contiguous_format if dims == 1 else compat.suggest_memory_format(side) for side in (x, weight)]
    if dims == 1:  # an image of one row
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        settings = [[fill, *setting] for fill, setting in zip((1, 0, 1), settings, strict=True)]
    y = _depthwise(x, weight, *settings)
    if bias is not None:
        y = y + bias[:, None, None]
    if torch.channels_last in formats:
        return y.contiguous(memory_format=torch.channels_last)
    return (y.squeeze(2) if dims == 1 else y).contiguous()


SUBSTITUTES = frozenset({aten.conv1d.default, aten.conv2d.default})
"""The operators for which :func:`conv` stands in."""


def _bound(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]:  # fmt: skip
    return input, weight, bias, stride, padding, dilation, groups


def _each(setting: Any, dims: int) -> list[int]:
    values = [setting] if isinstance(setting, int) else list(setting)
    return values * dims if len(values) == 1 else values


def _pays(x: Tensor, weight: Tensor, groups: int) -> bool:
    return (
        x.dtype == weight.dtype == torch.float64
        and x.dim() == weight.dim()
        and x.device.type == "cpu"
        and x.numel() > 0
        and groups == x.shape[1] == weight.shape[0]
        and math.prod(weight.shape[2:]) >= _FEW_TAPS
        # a matrix would multiply its zeros with infinities
        and bool(torch.isfinite(x.sum()) and torch.isfinite(weight.sum()))
    )


def _depthwise(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``[N, C, H, W]`` with a kernel ``[C, 1, *kernel]``."""
    (batch, channels), rows = x.shape[:2], weight.shape[2]
    reaches = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    height, width = (
        (size + 2 * pad - reach) // step + 1
        for size, pad, reach, step in zip(x.shape[2:], padding, reaches, stride, strict=True)
    )
    length = min(width, _BLOCK)
    count = -(-width // length)
    frame = stride[1] * (length - 1) + reaches[1]
    behind = stride[1] * length * (count - 1) + frame - x.shape[3] - padding[1]
    x = F.pad(x, [padding[1], behind, padding[0], padding[0]])  # a negative amount cuts off what nothing reads
    frames = x.unfold(3, frame, stride[1] * length).transpose(0, 1)  # [C, N, H, count, frame]
    matrices = _matrices(weight[:, 0], frame, length, stride[1], dilation[1])
    total = x.new_zeros(channels, batch * height * count, length)
    for row in range(rows):
        first = dilation[0] * row
        seen = frames[:, :, first : first + stride[0] * (height - 1) + 1 : stride[0]]
        total.baddbmm_(seen.reshape(channels, -1, frame), matrices[:, row])
    y = total.reshape(channels, batch, height, count * length)[..., :width]
    return y.transpose(0, 1)


def _matrices(weight: Tensor, frame: int, length: int, stride: int, dilation: int) -> Tensor:
    """``[C, rows, frame, length]``: column ``v`` holds tap ``i`` at ``stride * v + dilation * i``."""
    channels, rows, taps = weight.shape
    outputs, taken = torch.arange(length)[:, None], torch.arange(taps)[None]
    matrices = weight.new_zeros(channels, rows, frame, length)
    matrices[:, :, stride * outputs + dilation * taken, outputs] = weight[:, :, None, :].expand(-1, -1, length, -1)
    return matrices
