"""Taps at the border of a kernel that are zero, and the smaller convolution without them.

A convolution without its first ``a`` and last ``b`` taps along a dimension, ``d`` apart, needs ``d a`` and ``d b`` less
padding there. What is less than none is cut off its input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.ops import Convolution

aten = torch.ops.aten

Cut = tuple[int, int]
"""How many taps are left out before and behind the others, along one dimension."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a convolution.

    Attributes:
        count: taps.
        step: their distance.
        low, high: zeros around the input.
    """

    count: int
    step: int
    low: int
    high: int

    def without(self, cut: Cut) -> tuple[int, int]:
        """The zeros around the input that are left without some taps; negative ones are cut off the input."""
        return self.low - self.step * cut[0], self.high - self.step * cut[1]

    def best(self, zeros: Cut) -> Cut:
        """The most of ``zeros`` to leave out, one tap staying, such that the input has as many zeros at both ends."""
        return max(self._cropped(zeros), self.padded(zeros), key=sum)

    def _cropped(self, zeros: Cut) -> Cut:
        """With no zeros around the input."""
        least = (-(-self.low // self.step), -(-self.high // self.step))
        if zeros[0] < least[0] or zeros[1] < least[1] or sum(least) >= self.count:
            return 0, 0
        first = min(zeros[0], max(least[0], self.count // 2) if sum(zeros) >= self.count else zeros[0])
        first = min(first, self.count - 1 - least[1])
        return first, min(zeros[1], self.count - 1 - first)

    def padded(self, zeros: Cut, uneven: int = 0) -> Cut:
        """The most to leave out such that there are ``uneven`` more zeros behind the input than before it, if any."""
        more, odd = divmod(self.high - self.low - uneven, self.step)
        if odd:
            return 0, 0
        first = min(zeros[0], zeros[1] - more, self.low // self.step, (self.count - 1 - more) // 2)
        return (first, first + more) if first >= 0 and first + more >= 0 else (0, 0)


def axes_of(conv: Convolution) -> list[Axis]:
    """The dimensions of a convolution."""
    return [Axis(*axis) for axis in zip(conv.kernel, conv.dilation, *zip(*conv.padding, strict=True), strict=True)]


def kernel_of(axes: Sequence[Axis], cuts: Sequence[Cut]) -> list[int]:
    """The size of the kernel that is left."""
    return [axis.count - sum(cut) for axis, cut in zip(axes, cuts, strict=True)]


def best_cuts(axes: Sequence[Axis], zeros: Sequence[Cut]) -> list[Cut]:
    """The most taps to leave out such that the smaller convolution needs no separate padding.

    A convolution that has uneven padding by the name of ``"same"`` may keep it so.
    """
    plain = [axis.best(limit) for axis, limit in zip(axes, zeros, strict=True)]
    if all(axis.low == axis.high for axis in axes):
        return plain
    named = [max(axis.padded(limit), axis.padded(limit, 1), key=sum) for axis, limit in zip(axes, zeros, strict=True)]
    return min(plain, named, key=lambda cuts: math.prod(kernel_of(axes, cuts)))


def zero_borders(weight: Tensor) -> list[Cut]:
    """How many taps before and behind all others are zero, along each dimension of a kernel ``[O, C, *taps]``.

    A kernel of zeros has as many of them at both ends as it has taps.
    """
    used = (weight != 0).flatten(0, 1).any(0)
    borders = []
    for dim, count in enumerate(used.shape):
        others = [d for d in range(used.dim()) if d != dim]
        places = (used.any(others) if others else used).nonzero().flatten().tolist()
        borders.append((places[0], count - 1 - places[-1]) if places else (count, count))
    return borders


def convolve_part(
    g: Builder,
    conv: Convolution,
    axes: Sequence[Axis],
    cuts: Sequence[Cut],
    *,
    x: Node,
    weight: Node,
    bias: Node | None,
    groups: int,
) -> Node:
    """A convolution of the stride and dilation of another one without some taps of ``weight``.

    Args:
        g: the builder.
        conv: the other one.
        axes: its dimensions, with the zeros around ``x``.
        cuts: what is left out.
        x, weight, bias, groups: of the new one.
    """
    for d, (axis, cut) in enumerate(zip(axes, cuts, strict=True), start=2):
        if any(cut):
            weight = g(aten.slice.Tensor, weight, d, cut[0], axis.count - cut[1])
    return convolve_cut(g, conv, axes, cuts, x=x, weight=weight, bias=bias, groups=groups)


def convolve_cut(
    g: Builder,
    conv: Convolution,
    axes: Sequence[Axis],
    cuts: Sequence[Cut],
    *,
    x: Node,
    weight: Node,
    bias: Node | None,
    groups: int,
) -> Node:
    """As :func:`convolve_part`, with a ``weight`` that has no more taps than are left."""
    padding = []
    for d, (axis, cut) in enumerate(zip(axes, cuts, strict=True), start=2):
        low, high = axis.without(cut)
        if low < 0 or high < 0:
            x = g(aten.slice.Tensor, x, d, max(0, -low), high if high < 0 else None)
        padding.append((max(0, low), max(0, high)))
    return convolve(g, x, weight, bias, stride=conv.stride, padding=padding, dilation=conv.dilation, groups=groups)
