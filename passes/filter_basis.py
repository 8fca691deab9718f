"""A convolution whose filters are few different ones as a depthwise convolution with these, and a pointwise one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.convolve import convolve
from passes.low_rank import factors, numerical_rank
from rewrite.ops import Convolution, value, view_as
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class FilterBasis(Rule):
    r"""Compute a convolution whose filters over each input channel span few dimensions in two steps.

    .. math:: W_{o,c,i} = \sum_{r=1}^{R} M_{o,(c,r)} V_{c,r,i},\quad
        y_o = b_o + \sum_{c,r} M_{o,(c,r)}\, (V_{c,r} * x_c)

    First a depthwise convolution with R basis filters for each channel, of the same geometry, then a 1x1 convolution.
    Layers of low variety are frequent in trained networks (Gavrikov and Keuper, CNN Filter DB, 2022); a basis that all
    input channels share is one for each of them.

    The filters must have that rank up to the rounding of their dtype, see :mod:`passes.low_rank`, and there must be
    strictly fewer multiply-accumulates: :math:`R\,C\,(k + O / g)` against :math:`O\,C\,k / g` for each position, with k
    taps and g groups. Rounding errors spread over the kernel's window, and what is infinite in the window may become
    NaN.
    """

    fidelity = Fidelity.NORMWISE
    choice = True
    reads_values = True
    rounds_weights = True
    starts = "a convolution of more than one tap"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution among ``dirty`` that a basis of one filter could make cheaper."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.transposed or _most(conv) < 1 or self._made(node):
                continue
            found = affine.layer_refusal(graph, conv) or _rank(conv, graph.value(conv.weight))
            if isinstance(found, int):
                yield Match(self, (node,), (node,), {"conv": conv, "rank": found})
            else:
                yield Miss(self.name, node, found, (node,))

    def _made(self, node: Node) -> bool:
        made = origin(node)
        return made is not None and made.rule == self.name

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The depthwise convolution, then the pointwise one."""
        conv, rank, n = match.conv, match.rank, match.conv.dims
        outputs, inputs, taps = _grouped_shape(conv)
        matrices = g(aten.reshape.default, conv.weight, [conv.groups, outputs, inputs, taps])
        matrices = g(aten.permute.default, matrices, [0, 2, 3, 1])
        matrices = g(aten.reshape.default, matrices, [conv.in_channels, taps, outputs])
        left, right = factors(g, matrices, rank, value(conv.weight).dtype)
        basis = g(aten.permute.default, left, [0, 2, 1])
        basis = g(aten.reshape.default, basis, [conv.in_channels * rank, 1, *conv.kernel])
        mix = g(aten.reshape.default, right, [conv.groups, inputs * rank, outputs])
        mix = g(aten.permute.default, mix, [0, 2, 1])
        mix = g(aten.reshape.default, mix, [conv.out_channels, inputs * rank, *[1] * n])
        y = convolve(g, conv.input, basis, None, stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
                     groups=conv.in_channels)  # fmt: skip
        return convolve(g, y, mix, conv.bias, stride=[1] * n, padding=[(0, 0)] * n, dilation=[1] * n,
                        groups=conv.groups)  # fmt: skip


def _grouped_shape(conv: Convolution) -> tuple[int, int, int]:
    """Output and input channels of a group, and taps."""
    return conv.out_channels // conv.groups, conv.in_channels // conv.groups, math.prod(conv.kernel)


def _most(conv: Convolution) -> int:
    """The largest rank that is cheaper."""
    outputs, inputs, taps = _grouped_shape(conv)
    return (outputs * taps - 1) // (outputs + taps) if inputs else 0


def _rank(conv: Convolution, weight: Tensor) -> int | Refusal:
    if not weight.isfinite().all():
        return Refusal("its kernel is infinite or NaN", conv.weight, "give it finite values")
    outputs, inputs, taps = _grouped_shape(conv)
    matrices = weight.reshape(conv.groups, outputs, inputs, taps).permute(0, 2, 3, 1).flatten(0, 1)

    def by_output(squares: Tensor) -> Tensor:
        return squares.reshape(conv.groups, inputs, -1, outputs).sum(1).transpose(0, 1).flatten(1)

    rank, most = numerical_rank(matrices, weight.dtype, by_output), _most(conv)
    if rank <= most:
        return rank
    return Refusal(f"its filters over an input channel have rank {rank}, and with a basis of {rank} there are "
                   f"{rank * (taps + outputs)} multiply-accumulates for each of them and position instead of "
                   f"{outputs * taps}", conv.node, f"train it with filters of rank {most} at most")  # fmt: skip
