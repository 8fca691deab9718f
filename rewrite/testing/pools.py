"""Pooling over windows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from hypothesis import strategies as st
from torch import nn

from rewrite.testing.spec import Call, Draws, Layer, drawn_call, some

_MODULES: dict[str, tuple[Any, ...]] = {
    "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    "average": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    "adaptive_max": (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    "adaptive_average": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
}

POOLS = tuple(_MODULES)
"""The kinds."""


@dataclass(frozen=True, repr=False)
class PoolSpec(Layer):
    """A pool over ``[N, channels, *sizes]``.

    Attributes:
        kind: one of :data:`POOLS`.
        channels: their number.
        kernel: one for each size; for the adaptive kinds the sizes of the output.
        stride, padding, dilation: one for each size; the dilation of maxima only.
        ceil_mode: as ``torch.nn`` takes it.
        counts_padding: ``count_include_pad`` of averages.
        divisor: ``divisor_override`` of averages in two and three dimensions; None for the window's size.
    """

    kind: str = "max"
    channels: int = 4
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    ceil_mode: bool = False
    counts_padding: bool = True
    divisor: int | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, channels, *sizes]``."""
        return (self.batch, self.channels, *self.sizes)

    def taking(self, shape: Sequence[int]) -> PoolSpec:
        """For an input ``[N, C, *]`` that is large enough for the windows."""
        return replace(self, batch=shape[0], channels=shape[1], sizes=tuple(shape[2:]))

    def build(self, draw: Draws) -> nn.Module:
        """The module of ``torch.nn``."""
        made = _MODULES[self.kind][len(self.sizes) - 1]
        if self.kind.startswith("adaptive"):
            return made(self.kernel)  # type: ignore[no-any-return]
        options: dict[str, Any] = {"padding": self.padding or 0, "ceil_mode": self.ceil_mode}
        if self.kind == "max":
            options["dilation"] = self.dilation or 1
        else:
            options["count_include_pad"] = self.counts_padding
            if len(self.sizes) > 1:
                options["divisor_override"] = self.divisor
        return made(self.kernel, self.stride or None, **options)  # type: ignore[no-any-return]


@st.composite
def pools(
    draw: st.DrawFn, /, kinds: Collection[str] = POOLS, *, dims: int | Collection[int] = (1, 2, 3), **call: Unpack[Call]
) -> PoolSpec:
    """Pools: padded, strided, overlapping, dilated, with windows that hang over the end.

    Args:
        kinds: of :data:`POOLS`.
        dims: how many spatial dimensions, or which numbers of them.
        call: ``batches``, ``dtypes`` and ``layouts`` of the input.
    """
    count, kind = some(draw, dims), draw(st.sampled_from(list(kinds)))
    fields: dict[str, Any] = {"kind": kind, "channels": draw(st.integers(1, 6))}
    kernel, stride, padding, dilation, sizes = [], [], [], [], []
    for _ in range(count):
        kernel.append(draw(st.integers(1, 4)))
        if kind.startswith("adaptive"):
            sizes.append(draw(st.integers(1, 7)))
            continue
        stride.append(draw(st.integers(1, 3)))
        padding.append(draw(st.integers(0, kernel[-1] // 2)))
        dilation.append(draw(st.integers(1, 3)) if kind == "max" else 1)
        least = max(1, dilation[-1] * (kernel[-1] - 1) + 1 - 2 * padding[-1])
        if kind == "average" and count == 3:
            least = max(least, kernel[-1])  # torch refuses smaller ones, padded or not
        sizes.append(draw(st.integers(least, least + 5)))
    fields |= {"kernel": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding)}
    if kind == "max":
        fields |= {"dilation": tuple(dilation), "ceil_mode": draw(st.booleans())}
    elif kind == "average":
        fields |= {"ceil_mode": draw(st.booleans()), "counts_padding": draw(st.booleans())}
        if count > 1:
            fields["divisor"] = draw(st.sampled_from([None, None, 3]))
    fields |= drawn_call(draw, **call)
    if kind == "average" and count == 3 and fields["dtype"] == torch.bfloat16:
        fields["dtype"] = torch.float32  # torch has no such kernel
    return PoolSpec(tuple(sizes), **fields)
