r"""The smallest circular correlation that holds a padded one, along one dimension: pure integers.

The dense outputs of a convolution, before its stride, are

.. math:: y_u = \sum_i w_i\, x_{u - l + d i},\quad 0 \le u < S + l + h - d (K - 1)

with zeros for ``x`` outside of ``0 .. S - 1``. On a circle of ``M`` points the zeros before and those behind the input
may be the same ones, so ``M >= S + max(l, h)`` is enough, and neither side is padded on its own. Usual code takes
``S + K - 1``.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rewrite.arithmetic import largest

if TYPE_CHECKING:
    from passes.reparameterize.kernels import Taps

LARGEST = 2**26
"""No transform is longer than this."""


@dataclass(frozen=True)
class Circle:
    """One dimension of a convolution on a circle.

    Attributes:
        size: of the input.
        taps: of the kernel.
        stride: of the convolution.
    """

    size: int
    taps: Taps
    stride: int = 1

    @property
    def reach(self) -> int:
        """How many elements the kernel spans."""
        return self.taps.extent + 1

    @property
    def dense(self) -> int:
        """How many outputs there are at stride 1."""
        return self.taps.outputs(self.size, 1)

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return self.taps.outputs(self.size, self.stride)

    @property
    def border(self) -> int:
        """How many zeros there are on the side with more of them."""
        return largest(self.taps.low, self.taps.high)

    @property
    def least(self) -> int:
        """The fewest points of a circle: no zero is missing, no output and no tap meets another one."""
        return largest(self.size + self.border, self.dense, self.reach)

    @property
    def period(self) -> int:
        """A number of points, at least :attr:`least`, that transforms quickly."""
        return fast_length(self.least)


def fast_length(least: int) -> int:
    """The smallest even number with no prime factor above 7 that is not less than a positive one.

    Even, because the real transform packs two elements into one complex number.

    Raises:
        ValueError: it is above 2**26.
    """
    if least > LARGEST:
        raise ValueError(f"{least} points are more than {LARGEST}")
    lengths = _smooth()
    return lengths[bisect.bisect_left(lengths, least)]


@cache
def _smooth() -> list[int]:
    """The even numbers up to the largest with no prime factor above 7, in order."""
    found = [2]
    for prime in (2, 3, 5, 7):
        more = found
        while more:
            more = [number * prime for number in more if number * prime <= LARGEST]
            found = found + more
    return sorted(found)
