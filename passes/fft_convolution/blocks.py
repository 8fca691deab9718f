r"""Overlap-save: a long correlation as many short circular ones, along one dimension: pure integers.

Each block of ``B`` outputs reads ``B + K - 1`` elements, on a circle of as many points; neighbouring blocks share
``K - 1`` elements (Stockham, High-speed convolution and correlation, 1966).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fft_convolution.circle import fast_length
from rewrite.arithmetic import ceil_div

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.fft_convolution.circle import Circle

_FRAMING = 4
"""What copying an element into its blocks counts, in the unit of one step of the transforms."""


@dataclass(frozen=True)
class Blocks:
    """A cut of one dimension into blocks.

    Attributes:
        period: points of each circle.
        length: outputs of each block.
        count: how many blocks.
    """

    period: int
    length: int
    count: int

    @classmethod
    def of(cls, period: int, circle: Circle) -> Blocks:
        """The cut into blocks on circles of so many points."""
        length = period - circle.reach + 1
        return cls(period, length, ceil_div(circle.dense, length))

    @property
    def padded(self) -> int:
        """How many elements of the input, with zeros, all blocks read."""
        return (self.count - 1) * self.length + self.period


def cut_of(circles: Sequence[Circle]) -> Blocks | None:
    """The best cut of a convolution along one dimension; of more they are not cut."""
    return blocks(circles[0]) if len(circles) == 1 else None


def blocks(circle: Circle) -> Blocks | None:
    """The cut that takes the least arithmetic; None where one transform of everything takes less."""
    best, least = None, circle.period * math.log2(circle.period)
    period = fast_length(2 * circle.reach)
    while period < circle.period:
        found = Blocks.of(period, circle)
        cost = found.count * period * (math.log2(period) + _FRAMING)
        if cost < least:
            best, least = found, cost
        period = fast_length(period + max(1, period // 4))
    return best
