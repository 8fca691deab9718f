"""Where a kernel reads along one dimension: pure integers.

A convolution's output at ``u`` reads its input at ``stride * u + t`` for each tap offset ``t = step * i - low``. Two
kernels over the same input can be added when they are aligned by these offsets. Kernel centres play no part: the usual
``K // 2 - k // 2`` is wrong for even kernels and for unequal padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewrite.ops import Convolution


@dataclass(frozen=True)
class Taps:
    """The taps of a kernel along one dimension.

    Attributes:
        count: how many.
        step: their distance (the dilation).
        low, high: the padding before and behind the input; the first tap offset is ``-low``.
    """

    count: int = 1
    step: int = 1
    low: int = 0
    high: int = 0

    @property
    def extent(self) -> int:
        """The distance from the first tap to the last."""
        return self.step * (self.count - 1)

    @property
    def offsets(self) -> range:
        """Where the taps are, relative to ``stride * u``."""
        return range(-self.low, self.extent - self.low + 1, self.step)

    def outputs(self, size: int, stride: int) -> int:
        """How many outputs an input of this size gives."""
        return (size + self.low + self.high - self.extent - 1) // stride + 1


def taps_of(conv: Convolution) -> list[Taps]:
    """Those of a convolution, one for each dimension."""
    geometry = zip(conv.kernel, conv.dilation, conv.padding, strict=True)
    return [Taps(count, step, low, high) for count, step, (low, high) in geometry]


def union(parts: Sequence[Taps], stride: int, size: int | None) -> Taps | None:
    """The smallest regular taps that contain those of all parts and give as many outputs as they do.

    Args:
        parts: at least one; all give equally many outputs for an input of the given size.
        stride: theirs.
        size: the input's; None where it is not known, then parts that agree for some sizes only have no union.
    """
    low = max(part.low for part in parts)
    extent = low + max(part.extent - part.low for part in parts)
    step = math.gcd(*(low - part.low for part in parts), *(part.step for part in parts if part.count > 1)) or 1
    surplus = {part.low + part.high - part.extent for part in parts}
    if len(surplus) == 1:
        high = surplus.pop() + extent - low  # the same number of outputs for every size
    elif size is None or len({part.outputs(size, stride) for part in parts}) > 1:
        return None
    else:
        # any high in [least, least + stride) gives the same outputs; one equal to low needs no separate padding
        least = (parts[0].outputs(size, stride) - 1) * stride + extent + 1 - size - low
        high = low if least <= low < least + stride else max(least, 0)
    return Taps(extent // step + 1, step, low, high)


def place(part: Taps, whole: Taps) -> tuple[int, int]:
    """``(offset, step)`` in taps of ``whole``: tap ``i`` of ``part`` is its tap ``offset + step * i``."""
    return (whole.low - part.low) // whole.step, max(part.step // whole.step, 1)
