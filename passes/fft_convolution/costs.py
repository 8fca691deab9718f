"""What a convolution takes, as a sum over taps and by transforms; sizes may be symbols of :mod:`rewrite.arithmetic`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rewrite.flops import of_convolution, of_transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.fft_convolution.blocks import Blocks
    from passes.fft_convolution.circle import Circle
    from rewrite.arithmetic import Number
    from rewrite.ops import Convolution


def direct(conv: Convolution, circles: Sequence[Circle]) -> Number:
    """Floating-point operations of the sum over taps, for one sample."""
    outputs = math.prod(circle.outputs for circle in circles) * conv.out_channels
    return of_convolution(outputs, conv.in_channels // conv.groups, [circle.taps.count for circle in circles])


def transformed(conv: Convolution, periods: Sequence[Number], count: Number = 1) -> Any:
    """Floating-point operations by real transforms, for one sample; the spectrum of the kernel is at hand.

    A complex multiplication and addition count as 8.

    Args:
        conv: whose channels are transformed.
        periods: of a circle along each dimension.
        count: how many circles there are.
    """
    frequencies = math.prod(periods[:-1]) * (periods[-1] // 2 + 1)
    transforms = of_transform(math.prod(periods), real=True) * (conv.in_channels + conv.out_channels)
    products = 8 * frequencies * conv.out_channels * (conv.in_channels // conv.groups)
    return count * (transforms + products)


def least(conv: Convolution, circles: Sequence[Circle], cut: Blocks | None) -> float:
    """The operations by transforms of the circles, or of the blocks that the one dimension is cut into."""
    if cut is not None:
        return float(transformed(conv, [cut.period], cut.count))
    return float(transformed(conv, [circle.period for circle in circles]))
