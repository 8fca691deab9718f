r"""What the outputs that are kept need of input, kernel and circle, along one dimension: pure integers.

A product of spectra over ``N`` points is a circular convolution,

.. math:: y_u = \sum_i k_i\, x_{(u - i) \bmod N} = \sum_{j} z_{u + j N},\quad z = k * x,\quad z_v = 0
    \text{ outside of } 0 \le v < L + S - 1

and the outputs ``a <= u < b`` are those of the linear one where ``a + N >= L + S - 1``. Of them no output reads
``x_b`` or ``k_b``, nor what is more than ``S - 1`` before ``a``.
"""

from __future__ import annotations

from dataclasses import dataclass

from passes.fft_convolution.circle import Circle
from passes.reparameterize.kernels import Taps


@dataclass(frozen=True)
class Line:
    """One dimension of a convolution by transforms.

    Attributes:
        size: elements of the input, ``L``.
        kernel: elements of the kernel, ``S``.
        period: points of the transforms, ``N``; of input and kernel they read no more.
        start, end: the outputs that are kept, ``a`` and ``b``, with ``0 <= a < b <= N``.
    """

    size: int
    kernel: int
    period: int
    start: int
    end: int

    @property
    def wraps(self) -> bool:
        """Whether an output that is kept meets another one on the circle."""
        return self.start + self.period < self.needed

    @property
    def needed(self) -> int:
        """How many points there have to be for no output to meet another one."""
        return min(self.size, self.period) + min(self.kernel, self.period) - 1

    @property
    def taps(self) -> int:
        """How many elements of the kernel are read."""
        return min(self.kernel, self.period, self.end)

    @property
    def first(self) -> int:
        """The first element of the input that is read."""
        return max(0, self.start - self.taps + 1)

    @property
    def last(self) -> int:
        """Behind the last element of the input that is read."""
        return min(self.size, self.period, self.end)

    @property
    def outputs(self) -> int:
        """How many outputs are kept."""
        return self.end - self.start

    @property
    def circle(self) -> Circle:
        """The same as a correlation with the kernel turned around, of what is read of the input."""
        size, offset = self.last - self.first, self.start - self.first
        return Circle(size, Taps(self.taps, 1, self.taps - 1 - offset, self.end - self.first - size))
