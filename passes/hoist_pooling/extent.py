r"""What the outputs of a convolution read together along one dimension: pure integers.

The outputs of a convolution along a dimension are :math:`y_u = \sum_i w_i x_{su + di - p}`, so their sum is
:math:`\sum_h Z_h x_h`, where :math:`Z_h` adds up the taps that some output places on position :math:`h`. Near the ends
these are fewer taps; between the ends they repeat with the stride. Positions of equal :math:`Z` can be averaged first,
and then a *reduced* convolution, over one period instead of all of them, has the same coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """The positions that the outputs read, in runs of equal coefficients.

    Positions are taken from the input at ``start``, in steps of ``step``. Of these the first ``low`` and the last
    ``high`` stand for themselves. Between them are ``repeats`` periods of ``period`` positions; position ``j`` of all
    periods is averaged into one.

    Attributes:
        outputs: how many outputs are averaged.
        taps, stride, dilation, padding: of the reduced convolution, from the positions that are left to
            ``reduced_outputs``. Of a transposed one they are its own.
        reduced_outputs: the outputs of the reduced convolution.
    """

    start: int
    step: int
    low: int
    period: int
    repeats: int
    high: int
    outputs: int
    taps: int
    stride: int
    dilation: int
    padding: int
    reduced_outputs: int

    @property
    def read(self) -> int:
        """How many positions of the input are read."""
        return self.low + self.period * self.repeats + self.high

    @property
    def positions(self) -> int:
        """How many are left after averaging."""
        return self.low + self.period + self.high

    @property
    def is_mean(self) -> bool:
        """Whether everything that is read is averaged, with equal weights."""
        return self.positions == self.period == 1

    def is_whole(self, size: int) -> bool:
        """Whether every position of an input of this size is read in its place."""
        return self.step == 1 and self.read == size


def plain(size: int, taps: int, stride: int, dilation: int, padding: int, outputs: int) -> Extent | None:
    """The extent of a convolution, or None where it skips positions between those that it reads, or reads none.

    Args:
        size: of the input.
        taps, stride, dilation: of the kernel; ``padding`` zeros stand before the input.
        outputs: how many there are.
    """
    dilation = dilation if taps > 1 else 0
    step = math.gcd(stride, dilation)
    start = -padding % step
    stride, dilation, padding = stride // step, dilation // step, (padding + start) // step
    reach = dilation * (taps - 1)
    size = min(-((start - size) // step), stride * (outputs - 1) + reach - padding + 1)
    # every tap of some output falls on the positions from `low`, and before `end`
    low, end = max(0, reach - padding), stride * (outputs - 1) - padding + 1
    repeats = (min(end, size) - low) // stride
    if repeats < 2:
        low, repeats, period, high = size, 0, 0, 0
    else:
        period, high = stride, size - low - stride * repeats
    reduced = outputs - max(0, repeats - 1)
    extent = Extent(start, step, low, period, repeats, high, outputs, taps, stride, dilation or 1, padding, reduced)
    touched = {stride * u + dilation * i - padding for u in range(reduced) for i in range(taps)}
    return extent if touched.issuperset(range(extent.positions)) and extent.positions > 0 else None


def transposed(size: int, taps: int, stride: int, dilation: int, padding: int, outputs: int) -> Extent | None:
    """The extent of a transposed convolution; None where cropping leaves nothing of some position.

    Args:
        size: of the input.
        taps, stride, dilation: of the kernel; ``padding`` outputs are cropped before the first one.
        outputs: how many there are.
    """
    reach = dilation * (taps - 1)
    # all taps of the positions from `low`, and before `end`, fall on outputs that are not cropped
    low = min(size, -(-padding // stride))
    end = (outputs - 1 + padding - reach) // stride + 1
    repeats = min(end, size) - low
    if repeats < 2:
        low, repeats, period, high = size, 0, 0, 0
    else:
        period, high = 1, size - low - repeats
    reduced = outputs - stride * max(0, repeats - 1)
    extent = Extent(0, 1, low, period, repeats, high, outputs, taps, stride, dilation, padding, reduced)
    kept = all(
        any(0 <= stride * u + dilation * i - padding < reduced for i in range(taps)) for u in range(extent.positions)
    )
    return extent if kept and extent.positions > 0 else None
