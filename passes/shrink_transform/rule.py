"""A convolution that a model computes by transforms, over fewer points or as a sum over taps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes.fft_convolution.circle import LARGEST
from passes.fft_convolution.transforms import backward, forward
from passes.shrink_transform.direct import Channels, channels_of, convolution
from passes.shrink_transform.kernel import first_elements
from passes.shrink_transform.program import Program, begun, program_of
from rewrite.ops import value
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class ShrinkTransform(Rule):
    r"""Transform over as few points as the outputs need that are kept, or sum over the taps of a short kernel.

    .. math:: \mathcal{F}_N^{-1}(\mathcal{F}_N(x) \odot \mathcal{F}_N(k))_{a:b} = (x * k)_{a:b} =
        \mathcal{F}_M^{-1}(\mathcal{F}_M(x) \odot \mathcal{F}_M(k))_{a:b},\quad M \ge \max(b, L + S - 1 - a)

    for ``N >= L + S - 1 - a``, with ``L`` elements of input and ``S`` taps, neither above ``b``; see
    :mod:`passes.shrink_transform.line`. Models of long sequences take twice the length whatever the kernel (Li et al.,
    What Makes Convolutional Models Great on Long Sequence Modeling?, 2023; Poli et al., Hyena Hierarchy, 2023). The
    number of taps is known where the kernel is transformed by the program itself: named behind ``fold-constants`` the
    rule finds nothing. A transform that wraps around into what is kept is a circular convolution, and stays.

    The sum over taps rounds element by element, hears nothing of the future, and takes a batch of none. Under autocast
    it is computed as convolutions are, in 16 bits, and transforms are not. Behind it ``fft-convolution`` may find a way
    by blocks.

    Attributes:
        direct: the sum over taps is made where it takes fewer operations than so many times the transforms; 0 leaves
            all of them transforms.
    """

    fidelity = Fidelity.NORMWISE
    choice = True
    starts = "a transform back of a product with a spectrum"

    direct: float = 1.0

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each product with a spectrum that is transformed back among ``dirty``."""
        for node in dirty:
            start = begun(graph, node)
            if start is None:
                continue
            program = program_of(graph, start)
            if isinstance(program, Refusal):
                if origin(node) is None:  # of what a rule made there is nothing to be told
                    yield Miss(self.name, node, program, (node,))
                continue
            if any(line.circle.least > LARGEST for line in program.lines):
                yield Miss(self.name, node, Refusal(f"it takes more than {LARGEST} points", node), program.nodes)
                continue
            channels = channels_of(program)
            periods = [line.circle.period for line in program.lines]
            taps, shorter, now = _operations(program, periods)
            if channels is not None and taps < self.direct * min(shorter, now):
                captures: dict[str, Any] = {"program": program, "channels": channels, "periods": None}
            elif math.prod(periods) < math.prod(line.period for line in program.lines):
                captures = {"program": program, "channels": None, "periods": periods}
            else:
                if origin(node) is None:
                    yield Miss(self.name, node, _long(node, program, taps, now), program.nodes)
                continue
            yield Match(self, program.nodes, (program.node,), captures)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """A convolution, or the same program over fewer points."""
        program: Program = match.program
        channels: Channels | None = match.channels
        if channels is not None:
            return convolution(g, program, channels)
        return _shorter(g, program, match.periods)


def _operations(program: Program, periods: Sequence[int]) -> tuple[float, float, float]:
    """Floating-point operations of the sum over taps, of transforms over some points, and of those that there are.

    For one sample; the spectrum of the kernel is at hand.
    """
    dims, lines = program.dims, program.lines
    inputs, outputs = (_rows(node, dims) for node in (program.input, program.product))

    def transformed(sizes: Sequence[int]) -> float:
        points = math.prod(sizes)
        frequencies = points // sizes[-1] * (sizes[-1] // 2 + 1)
        return 2.5 * points * math.log2(max(2, points)) * (inputs + outputs) + 6 * frequencies * outputs

    taps = 2.0 * outputs * math.prod(line.taps * line.outputs for line in lines)
    return taps, transformed(periods), transformed([line.period for line in lines])


def _rows(node: Node, dims: int) -> int:
    """How often something is transformed for one sample."""
    sizes = tuple[Any, ...](value(node).shape[:-dims])
    return math.prod(size for size in sizes if isinstance(size, int))


def _long(node: Node, program: Program, taps: float, now: float) -> Refusal:
    points = " x ".join(str(line.period) for line in program.lines)
    count = math.prod(line.taps for line in program.lines)
    return Refusal(f"fewer than {points} points do not hold it or transform slowly, and the sum over {count} taps "
                   f"takes {taps / 1e6:.4g} million operations for each sample instead of {now / 1e6:.4g}",
                   node)  # fmt: skip


def _shorter(g: Builder, program: Program, periods: Sequence[int]) -> Node:
    """The program over other numbers of points."""
    lines = program.lines
    x = first_elements(g, program.input, [(line.first, line.last) for line in lines])
    kernel = program.spectrum.cut(g, [line.taps for line in lines], program.scale)
    y = g(aten.mul.Tensor, forward(g, x, periods), forward(g, kernel, periods))
    kept = [(line.start - line.first, line.end - line.first) for line in lines]
    return first_elements(g, backward(g, y, periods), kept)
