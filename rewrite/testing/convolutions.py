"""Convolutions over their whole geometry."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rewrite.testing.spec import Call, Draws, Layer, assign, drawn_call, either, some

MODES = ("zeros", "reflect", "replicate", "circular")

_PLAIN: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PADS: dict[str, tuple[Any, ...]] = {
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


@dataclass(frozen=True, repr=False)
class ConvSpec(Layer):
    """A convolution, or a transposed one, and its input.

    Attributes:
        in_channels, out_channels, groups, bias: as ``nn.Conv2d`` takes them.
        kernel, stride, dilation: one for each size of ``sizes``.
        padding: ``(low, high)`` for each size, or ``"same"`` or ``"valid"``. Where low and high differ, a padding
            module stands before the convolution.
        padding_mode: one of :data:`MODES`.
        transposed: an ``nn.ConvTranspose2d``; its padding is even and of zeros.
        output_padding: of a transposed one.
    """

    in_channels: int = 4
    out_channels: int = 4
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] | str = "valid"
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """The number of spatial dimensions."""
        return len(self.sizes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, C, *sizes]``."""
        return (self.batch, self.in_channels, *self.sizes)

    def taking(self, shape: Sequence[int]) -> ConvSpec:
        """For an input ``[N, C, *]`` that is large enough; one group where their number does not divide C."""
        groups = self.groups if shape[1] % self.groups == 0 else 1
        return replace(self, batch=shape[0], in_channels=shape[1], sizes=tuple(shape[2:]), groups=groups)

    def build(self, draw: Draws) -> nn.Module:
        """The convolution, after a padding module where the padding is uneven."""
        options: dict[str, Any] = {"groups": self.groups, "bias": self.bias}
        options |= {"stride": self.stride or 1, "dilation": self.dilation or 1}
        pad: nn.Module | None = None
        if self.transposed:
            options |= {"padding": self._even(), "output_padding": self.output_padding or 0}
        elif isinstance(self.padding, str):
            _warn_unheard()
            options |= {"padding": self.padding, "padding_mode": self.padding_mode}
        elif all(low == high for low, high in self.padding):
            options |= {"padding": self._even(), "padding_mode": self.padding_mode}
        else:
            flat = tuple(amount for pair in reversed(self.padding) for amount in pair)
            pad = _PADS[self.padding_mode][self.dims - 1](flat)
        kinds = _TRANSPOSED if self.transposed else _PLAIN
        layer = kinds[self.dims - 1](self.in_channels, self.out_channels, self.kernel, **options)
        fan_in = self.in_channels // self.groups * math.prod(self.kernel)
        assign(layer.weight, draw.kernel(layer.weight.shape, fan_in))
        if layer.bias is not None:
            assign(layer.bias, draw.normal(self.out_channels))
        return layer if pad is None else nn.Sequential(pad, layer)

    def _even(self) -> tuple[int, ...]:
        if isinstance(self.padding, str):
            return (0,) * self.dims
        return tuple(low for low, _ in self.padding)


@functools.cache
def _warn_unheard() -> None:
    """Let torch warn, once and unheard, that even kernels may copy: where warnings are errors, tests would fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        F.conv1d(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), padding="same")


@st.composite
def convolutions(
    draw: st.DrawFn,
    /,
    *,
    dims: int | Collection[int] = (1, 2, 3),
    transposed: bool | None = False,
    depthwise: bool | None = None,
    bias: bool | None = None,
    padding: bool | None = None,
    same_size: bool = False,
    modes: Collection[str] = MODES,
    in_channels: int | None = None,
    out_channels: int | None = None,
    max_kernel: int = 9,
    max_stride: int = 3,
    max_dilation: int = 4,
    **call: Unpack[Call],
) -> ConvSpec:
    """Convolutions of every geometry: even and rectangular kernels, sizes smaller than the kernel, uneven padding.

    Args:
        dims: how many spatial dimensions, or which numbers of them.
        transposed: transposed ones or not; None for both. So with the next three.
        depthwise: as many groups as input channels.
        bias: with a bias.
        padding: with padding; False leaves the input as it is.
        same_size: the output has the size of the input. Not for transposed ones.
        modes: of padding, from :data:`MODES`.
        in_channels, out_channels: their numbers, drawn where None.
        max_kernel, max_stride, max_dilation: bounds for each dimension; kernels in three dimensions are at most 4.
        call: ``batches``, ``dtypes`` and ``layouts`` of the input.
    """
    count, flips = some(draw, dims), either(draw, transposed)
    groups, inputs, outputs = _channels(draw, depthwise, in_channels, out_channels)
    mode = "zeros" if flips else draw(st.sampled_from(list(modes)))
    style = "cropped" if flips else _style(draw, padding, same_size)
    kernel, stride, dilation, pads, sizes, extra = [], [], [], [], [], []
    for _ in range(count):
        least = 2 if style == "same" and padding else 1
        kernel.append(draw(st.integers(least, min(max_kernel, 4 if count == 3 else 9))))
        stride.append(1 if same_size or style == "same" else draw(st.integers(1, max_stride)))
        dilation.append(draw(st.integers(1, max_dilation)))
        extent = dilation[-1] * (kernel[-1] - 1)
        if flips:
            pair, size = _cropped(draw, extent, stride[-1], padding)
            extra.append(draw(st.integers(0, max(stride[-1], dilation[-1]) - 1)))
        else:
            pair = _pair(draw, extent, style, padding)
            size = _size(draw, extent, pair, mode)
        pads.append(pair)
        sizes.append(size)
    fields = drawn_call(draw, **call)
    if count == 3 and fields["dtype"] == torch.bfloat16 and fields["layout"] == "channels_last":
        fields["layout"] = "contiguous"  # torch 2.13 crashes where a position sees nothing but padding
    if fields["dtype"] == torch.bfloat16 and max(stride) > 1 and max(dilation) > 1:
        fields["dtype"] = torch.float32  # oneDNN reads memory that nobody wrote, where the processor has AMX
    return ConvSpec(
        tuple(sizes), in_channels=inputs, out_channels=outputs, kernel=tuple(kernel), stride=tuple(stride),
        padding=style if style in ("same", "valid") else tuple(pads), dilation=tuple(dilation), groups=groups,
        bias=either(draw, bias), padding_mode=mode, transposed=flips, output_padding=tuple(extra), **fields,
    )  # fmt: skip


def _channels(
    draw: st.DrawFn, depthwise: bool | None, in_channels: int | None, out_channels: int | None
) -> tuple[int, int, int]:
    """Groups, input channels, output channels."""
    if either(draw, depthwise):
        if in_channels is None:
            divisors = [n for n in (4, 3, 2, 6, 5) if out_channels is None or out_channels % n == 0]
            in_channels = draw(st.sampled_from(divisors or [out_channels or 1]))
        return in_channels, in_channels, out_channels or in_channels * draw(st.integers(1, 2))
    inputs = in_channels or draw(st.sampled_from([4, 6, 1, 2, 3]))
    outputs = out_channels or draw(st.sampled_from([4, 6, 1, 2, 3]))
    common = math.gcd(inputs, outputs)
    fewer = [n for n in range(1, common + 1) if common % n == 0 and (n < inputs or n == 1)]
    return draw(st.sampled_from(fewer)), inputs, outputs


def _style(draw: st.DrawFn, padding: bool | None, same_size: bool) -> str:
    """How the padding is given: as amounts, that keep the size or not, by its name, or as zeros."""
    if same_size:
        return draw(st.sampled_from(["kept", "same"]))
    if padding is None:
        return draw(st.sampled_from(["amounts", "amounts", "amounts", "same", "valid", "zero"]))
    return draw(st.sampled_from(["amounts", "same"] if padding else ["zero", "valid"]))


def _pair(draw: st.DrawFn, extent: int, style: str, padding: bool | None) -> tuple[int, int]:
    """Padding of one dimension."""
    if style in ("valid", "zero"):
        return 0, 0
    if style in ("same", "kept"):
        low = extent // 2
        if style == "kept":
            low = draw(st.one_of(st.just(low), st.integers(0, extent)))
        return low, extent - low
    amounts = st.integers(1 if padding else 0, extent // 2 + 1)
    low = draw(amounts)
    return low, draw(st.one_of(st.just(low), amounts))


def _size(draw: st.DrawFn, extent: int, pair: tuple[int, int], mode: str) -> int:
    """A size of the input that torch takes: the kernel fits, no reflection or wrapping reaches beyond the input."""
    least = max(1, extent + 1 - sum(pair))
    if mode == "reflect":
        least = max(least, max(pair) + 1)
    if mode == "circular":
        least = max(least, max(pair))
    return draw(st.integers(least, least + 5))


def _cropped(draw: st.DrawFn, extent: int, stride: int, padding: bool | None) -> tuple[tuple[int, int], int]:
    """What a transposed convolution takes off both ends of its output, and a size that leaves something."""
    size = draw(st.integers(1, 5))
    most = ((size - 1) * stride + extent) // 2
    amount = 0 if padding is False else draw(st.integers(min(1 if padding else 0, most), most))
    return (amount, amount), size
