"""Depthwise convolutions with many taps as products of matrices: torch has no fast kernel for them in float64.

The reference of every comparison is computed in float64. There torch convolves a 31x31 kernel at a fiftieth of the
speed at which it multiplies matrices, so a row of the image times a Toeplitz matrix of a row of the kernel takes less
time, although most elements of such a matrix are zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewrite import compat
from rewrite.finite import all_finite
from rewrite.ops.convolution import per_dim

if TYPE_CHECKING:
    from collections.abc import Sequence

aten = torch.ops.aten

_FEW_TAPS = 128
"""What torch convolves as quickly."""

_BLOCK = 64
"""How many outputs one matrix makes, along the last dimension."""

_ELEMENTS = 2**23
"""How many numbers may be held at once: 64 MiB."""

_PLAIN = (Tensor, nn.Parameter)
"""Kinds of tensors that have values."""


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
    settings = [per_dim(setting, dims) for setting in (stride, padding, dilation)]
    formats = [torch.contiguous_format if dims == 1 else compat.suggest_memory_format(side) for side in (x, weight)]
    if dims == 1:  # an image of one row
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        settings = [(fill, *setting) for fill, setting in zip((1, 0, 1), settings, strict=True)]
    stride, padding, dilation = settings
    made = _Geometry(stride, padding, dilation, weight.shape[2:], x.shape[2:])
    if min(made.outputs) < 1:
        return target(*args, **kwargs)  # type: ignore[no-any-return]  # which says what is wrong
    y = _depthwise(x, weight, made)
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


def _pays(x: Tensor, weight: Tensor, groups: int) -> bool:
    return (
        type(x) in _PLAIN
        and type(weight) in _PLAIN
        and not compat.is_transforming()
        and x.dtype == weight.dtype == torch.float64
        and x.dim() == weight.dim()
        and x.device.type == "cpu"
        and x.numel() > 0
        and groups == x.shape[1] == weight.shape[0]
        and math.prod(weight.shape[2:]) >= _FEW_TAPS
        # a matrix would multiply its zeros with infinities
        and all_finite(x)
        and all_finite(weight)
    )


@dataclass(frozen=True)
class _Geometry:
    """Of rows and columns: the first and second of each pair."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    kernel: Sequence[int]
    size: Sequence[int]

    @property
    def reach(self) -> list[int]:
        return [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]

    @property
    def outputs(self) -> list[int]:
        each = zip(self.size, self.padding, self.reach, self.stride, strict=True)
        return [(size + 2 * pad - reach) // step + 1 for size, pad, reach, step in each]


def _depthwise(x: Tensor, weight: Tensor, made: _Geometry) -> Tensor:
    """``[N, C, H, W]`` with a kernel ``[C, 1, *kernel]``, a few channels at a time."""
    height, width = made.outputs
    length = min(width, _BLOCK)
    count = -(-width // length)
    frame = made.stride[1] * (length - 1) + made.reach[1]
    used = made.stride[1] * length * (count - 1) + frame
    (above, left), missing = made.padding, used - x.shape[3] - made.padding[1]
    x = F.pad(x, [left, max(0, missing), above, above])[..., :used]
    elements = frame * (made.kernel[0] * length + x.shape[0] * height * count)
    few = max(1, _ELEMENTS // elements)
    parts = zip(x.split(few, 1), weight[:, 0].split(few), strict=True)
    return torch.cat([_in_frames(part, kernels, made, frame, length, count) for part, kernels in parts], 1)[..., :width]


def _in_frames(x: Tensor, weight: Tensor, made: _Geometry, frame: int, length: int, count: int) -> Tensor:
    """The outputs of padded channels, and more behind them: ``length`` for each of ``count`` frames of a row."""
    (batch, channels), height = x.shape[:2], made.outputs[0]
    frames = x.unfold(3, frame, made.stride[1] * length).transpose(0, 1)  # [C, N, H, count, frame]
    matrices = _matrices(weight, frame, length, made.stride[1], made.dilation[1])
    total = x.new_zeros(channels, batch * height * count, length)
    for row in range(made.kernel[0]):
        first = made.dilation[0] * row
        seen = frames[:, :, first : first + made.stride[0] * (height - 1) + 1 : made.stride[0]]
        total.baddbmm_(seen.reshape(channels, -1, frame), matrices[:, row])
    return total.reshape(channels, batch, height, count * length).transpose(0, 1)


def _matrices(weight: Tensor, frame: int, length: int, stride: int, dilation: int) -> Tensor:
    """``[C, rows, frame, length]``: column ``v`` holds tap ``i`` at ``stride * v + dilation * i``."""
    channels, rows, taps = weight.shape
    outputs, taken = torch.arange(length)[:, None], torch.arange(taps)[None]
    matrices = weight.new_zeros(channels, rows, frame, length)
    matrices[:, :, stride * outputs + dilation * taken, outputs] = weight[:, :, None, :].expand(-1, -1, length, -1)
    return matrices
