r"""Overlap-save: a long correlation as many short circular ones, along one dimension: pure integers.

Each block of ``B`` outputs reads ``B + K - 1`` elements, on a circle of as many points; neighbouring blocks share
``K - 1`` elements (Stockham, High-speed convolution and correlation, 1966).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fft_convolution.circle import fast_length

if TYPE_CHECKING:
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

    @property
    def padded(self) -> int:
        """How many elements of the input, with zeros, all blocks read."""
        return (self.count - 1) * self.length + self.period


def blocks(circle: Circle) -> Blocks | None:
    """The cut that takes the least arithmetic; None where one transform of everything takes less."""
    best, least = None, circle.period * math.log2(circle.period)
    period = fast_length(2 * circle.reach)
    while period < circle.period:
        length = period - circle.reach + 1
        found = Blocks(period, length, -(-circle.dense // length))
        cost = found.count * period * (math.log2(period) + _FRAMING)
        if cost < least:
            best, least = found, cost
        period = fast_length(period + period // 4)
    return best
