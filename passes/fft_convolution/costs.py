"""What a convolution takes, as a sum over taps and by transforms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.fft_convolution.blocks import Blocks
    from passes.fft_convolution.circle import Circle
    from rewrite.ops import Convolution


def direct(conv: Convolution, circles: Sequence[Circle]) -> int:
    """Floating-point operations of the sum over taps, for one sample."""
    outputs = math.prod(circle.outputs for circle in circles)
    return 2 * outputs * math.prod(conv.kernel) * conv.out_channels * (conv.in_channels // conv.groups)


def transformed(conv: Convolution, circles: Sequence[Circle], cut: Blocks | None) -> int:
    """Floating-point operations by real transforms, for one sample; the spectrum of the kernel is at hand.

    A transform of M real numbers counts as ``2.5 M log2 M``, a complex multiplication and addition as 8.
    """
    points, count = math.prod(circle.period for circle in circles), 1
    frequencies = points // circles[-1].period * (circles[-1].period // 2 + 1)
    if cut is not None:
        points, count, frequencies = cut.period, cut.count, cut.period // 2 + 1
    transforms = 2.5 * points * math.log2(points) * (conv.in_channels + conv.out_channels)
    products = 8 * frequencies * conv.out_channels * (conv.in_channels // conv.groups)
    return round(count * (transforms + products))
