"""The sum over taps: which dimensions are channels of a convolution, and the convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes.convolve import convolve
from passes.shrink_transform.kernel import first_elements, leading
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.shrink_transform.program import Program
    from rewrite.fragment import Builder

aten = torch.ops.aten


@dataclass(frozen=True)
class Channels:
    """The dimensions before those of a convolution by transforms, as a convolution has them.

    Attributes:
        batched: whether the first one is the batch, which the kernel does not have.
        rank: how many there are.
        inputs: channels of the input.
        outputs: the sizes of the others, whose product are the channels of the outputs.
    """

    batched: bool
    rank: int
    inputs: int
    outputs: tuple[int, ...]

    @property
    def count(self) -> int:
        """Channels of the outputs."""
        return math.prod(self.outputs)


def channels_of(program: Program) -> Channels | None:
    """The channels of a program; None where no convolution has such."""
    dims = program.dims
    whole: list[Any] = list(value(program.product).shape[:-dims])
    rank = len(whole)

    def aligned(node: Node) -> list[Any]:
        found = list(value(node).shape[:-dims])
        return [1] * (rank - len(found)) + found

    kernel, given = aligned(program.spectrum.node), aligned(program.input)
    batched = rank > 0 and isinstance(kernel[0], int) and kernel[0] == 1
    outputs, inputs = whole[batched:], given[batched:]
    if not all(isinstance(size, int) for size in (*outputs, *inputs)):
        return None
    if inputs != outputs and math.prod(inputs) != 1:
        return None
    return Channels(batched, rank, math.prod(inputs), tuple(outputs))


def convolution(g: Builder, program: Program, channels: Channels) -> Node:
    """The outputs that are kept, as a convolution with the kernel turned around."""
    dims, lines, count = program.dims, program.lines, channels.count
    taps, circles = [line.taps for line in lines], [line.circle for line in lines]
    kernel = program.spectrum.cut(g, taps, program.scale)
    lead = leading(kernel, dims)
    lead = lead[1:] if channels.batched and len(lead) == channels.rank else lead
    if math.prod(lead) != count:
        kernel = g(aten.reshape.default, kernel, [*lead, *taps])
        kernel = g(aten.expand.default, kernel, [*channels.outputs, *taps])
    kernel = g(aten.reshape.default, kernel, [count, 1, *taps])
    kernel = g(aten.flip.default, kernel, list(range(2, dims + 2)))
    x = first_elements(g, program.input, [(line.first, line.last) for line in lines])
    whole = value(program.input).dim() == 2 + dims and channels.batched and channels.rank == 2
    if not whole:
        sizes = [circle.size for circle in circles]
        x = g(aten.reshape.default, x, [-1 if channels.batched else 1, channels.inputs, *sizes])
    padding = [(circle.taps.low, circle.taps.high) for circle in circles]
    y = convolve(g, x, kernel, None, stride=[1] * dims, padding=padding, dilation=[1] * dims, groups=channels.inputs)
    if channels.batched and channels.rank == 2:
        return y
    shape = [*([-1] if channels.batched else []), *channels.outputs, *(line.outputs for line in lines)]
    return g(aten.reshape.default, y, shape)
