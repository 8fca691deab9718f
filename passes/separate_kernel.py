"""A convolution of two dimensions whose kernel is separable as one along each dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.convolve import convolution_refusal, convolve
from passes.low_rank import factors, numerical_rank
from rewrite.arithmetic import symbol
from rewrite.crossover import Crossover
from rewrite.flops import Sizes
from rewrite.ops import Convolution, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor
    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Order:
    """Which dimension comes first, and what that takes.

    Attributes:
        first: 0 or 1.
        cost: multiply-accumulates for each unit of rank, for one sample.
        rank: of the kernels.
        given: multiply-accumulates of the one convolution.
        most: the highest rank that kernels of this shape can have.
    """

    first: int
    cost: int
    rank: int
    given: int
    most: int


@dataclass(frozen=True)
class SeparateKernel(Rule):
    r"""Compute a convolution whose kernel is separable as one along a dimension, then one along the other.

    .. math:: W_{o,c,i,j} = \sum_{r=1}^{R} H_{o,r,j} V_{r,c,i},\quad y = H * (V * x) + b

    with the factors of the matrix with rows :math:`(c, i)` and columns :math:`(o, j)` of each group (Jaderberg et al.,
    Speeding up Convolutional Neural Networks with Low Rank Expansions, 2014). For a depthwise convolution that is a
    column and a row filter for each channel, R of them. Each convolution has the stride, dilation and zeros of its own
    dimension, which is exact, as a zero beside the image is one in every row; the bias is added once, at the end.

    The kernel must have that rank up to the rounding of its dtype, see :mod:`passes.low_rank`, and there must be
    strictly fewer multiply-accumulates, from the sizes of the example. Rounding errors spread over the kernel's
    window, and what is infinite in the window may become NaN.
    """

    fidelity = Fidelity.NORMWISE
    choice = True
    reads_values = True
    rounds_weights = True
    starts = "a convolution of two dimensions"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution among ``dirty`` whose kernel extends in two dimensions."""
        sizes = Sizes(graph)
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.dims != 2 or min(conv.kernel) < 2:
                continue
            refusal = convolution_refusal(conv) or affine.layer_refusal(graph, conv)
            found = refusal or _order(conv, graph.value(conv.weight), sizes)
            if isinstance(found, Order):
                yield Match(self, (node,), (node,), {"conv": conv, "order": found})
            elif found is not None:
                yield Miss(self.name, node, found, (node,))

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The two convolutions."""
        conv, order = match.conv, match.order
        first, second, rank = order.first, 1 - order.first, order.rank
        groups, dtype = conv.groups, value(conv.weight).dtype
        shape = _grouped_shape(conv)
        matrices = g(aten.reshape.default, conv.weight, [groups, *shape])
        matrices = g(aten.permute.default, matrices, _dimensions(first))
        matrices = g(
            aten.reshape.default, matrices, [groups, shape[1] * shape[2 + first], shape[0] * shape[2 + second]]
        )
        left, right = factors(g, matrices, rank, dtype)
        sides = [[1, 1], [1, 1]]
        sides[first][first], sides[second][second] = shape[2 + first], shape[2 + second]
        before = g(aten.permute.default, left, [0, 2, 1])
        before = g(aten.reshape.default, before, [groups * rank, shape[1], *sides[first]])
        after = g(aten.reshape.default, right, [groups, rank, shape[0], shape[2 + second]])
        after = g(aten.permute.default, after, [0, 2, 1, 3])
        after = g(aten.reshape.default, after, [groups * shape[0], rank, *sides[second]])
        middle = _along(g, conv, first, conv.input, before, None)
        return _along(g, conv, second, middle, after, conv.bias)

    def crossovers(self, match: Match) -> Sequence[Crossover]:
        """Up to which rank R two convolutions take fewer operations."""
        order: Order = match.order
        costs = 2 * order.given, 2 * order.cost * symbol("R")
        return [Crossover.search("two convolutions", "R", *costs, 1, order.most, order.rank)]


def _along(g: Builder, conv: Convolution, d: int, x: Node, weight: Node, bias: Node | None) -> Node:
    """A convolution with the geometry of another one along dimension ``d`` alone."""
    return convolve(
        g, x, weight, bias, groups=conv.groups,
        stride=[step if i == d else 1 for i, step in enumerate(conv.stride)],
        padding=[pair if i == d else (0, 0) for i, pair in enumerate(conv.padding)],
        dilation=[step if i == d else 1 for i, step in enumerate(conv.dilation)],
    )  # fmt: skip


def _grouped_shape(conv: Convolution) -> list[int]:
    """``[O / groups, C / groups, *kernel]``."""
    return [conv.out_channels // conv.groups, conv.in_channels // conv.groups, *conv.kernel]


def _dimensions(first: int) -> list[int]:
    """From ``[groups, O, C, K1, K2]`` to groups, channels and the first dimension, outputs and the second one."""
    return [0, 2, 3 + first, 1, 4 - first]


def _order(conv: Convolution, weight: Tensor, sizes: Sizes) -> Order | Refusal | None:
    """The cheaper order; why neither saves anything; None where none could."""
    if not weight.isfinite().all():
        return Refusal("its kernel is infinite or NaN", conv.weight, "give it finite values")
    (_, _, *before), (_, _, *after) = sizes.shape(conv.input), sizes.shape(conv.node)
    given = math.prod(after) * math.prod(conv.kernel) * conv.out_channels * conv.in_channels // conv.groups
    shape, found = _grouped_shape(conv), []
    for first in (0, 1):
        second = 1 - first
        cost = after[first] * (conv.in_channels * conv.kernel[first] * before[second]
                               + conv.out_channels * conv.kernel[second] * after[second])  # fmt: skip
        if cost < given:
            matrices = weight.reshape(conv.groups, *shape).permute(_dimensions(first)).flatten(3).flatten(1, 2)
            rank = numerical_rank(matrices, weight.dtype, lambda squares: _by_output(squares, shape[0]))
            found.append(Order(first, cost, rank, given, min(matrices.shape[1:])))
    if not found:
        return None
    best = min(found, key=lambda order: order.cost * order.rank)
    if best.cost * best.rank < given:
        return best
    most = max((given - 1) // order.cost for order in found)
    return Refusal(f"its kernel has rank {best.rank}, and two convolutions of that rank take "
                   f"{best.cost * best.rank / 1e6:.4g} million multiply-accumulates instead of {given / 1e6:.4g}",
                   conv.node, f"train it with kernels of rank {most} at most")  # fmt: skip


def _by_output(squares: Tensor, outputs: int) -> Tensor:
    groups, rank, columns = squares.shape
    return squares.reshape(groups, rank, outputs, columns // outputs).sum(3).transpose(0, 1).flatten(1)
