"""A linear layer over channels last is a 1x1 convolution over channels first, either way round.

The two rules undo each other, so a pipeline names one of them at most, or one after the other in steps of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal, convolve, dtype_refusal, sizes_refusal
from rewrite.ops import Convolution, Linear, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class LinearAsConvolution(Rule):
    r"""Compute a linear layer over the last dimension as a 1x1 convolution, between permutations.

    .. math:: y_{n,u,o} = b_o + \sum_c W_{oc}\, x_{n,u,c}

    for one to three dimensions ``u`` between the batch and the channels, of known size, as a convolution of nothing is
    an error. Every output sums the same products, so non-finite values go where they went.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a linear layer over [N, *size, C]"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each linear layer among ``dirty`` whose input has one to three dimensions besides."""
        for node in dirty:
            layer = view_as(node, Linear)
            if layer is None or not 3 <= value(layer.input).dim() <= 5 or 0 in value(layer.input).shape[1:-1]:
                continue
            refusal = dtype_refusal(node) or sizes_refusal(layer.input, channels_last=True)
            yield self.at(node, refusal, layer=layer)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """Channels first, the convolution, channels last."""
        layer: Linear = match.layer
        n = value(layer.input).dim() - 2
        x = g(aten.permute.default, layer.input, [0, n + 1, *range(1, n + 1)])
        weight = g(aten.t.default, layer.weight) if layer.stored_transposed else layer.weight
        weight = g(aten.reshape.default, weight, [layer.out_features, layer.in_features, *[1] * n])
        y = convolve(g, x, weight, layer.bias, stride=[1] * n, padding=[(0, 0)] * n, dilation=[1] * n)
        return g(aten.permute.default, y, [0, *range(2, n + 2), 1])


@dataclass(frozen=True)
class ConvolutionAsLinear(Rule):
    r"""Compute a 1x1 convolution as a linear layer over the last dimension, between permutations.

    .. math:: y_{n,o,u} = b_o + \sum_c W_{oc}\, x_{n,c,su}

    With a stride the linear layer reads every ``s``-th position. Every output sums the same products, so non-finite
    values go where they went.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a 1x1 convolution"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each 1x1 convolution among ``dirty``."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or set(conv.kernel) != {1}:
                continue
            refusal = convolution_refusal(conv) or _as_linear_refusal(conv)
            yield self.at(node, refusal, conv=conv)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """Channels last, the linear layer, channels first."""
        conv: Convolution = match.conv
        n, x = conv.dims, conv.input
        for d, step in enumerate(conv.stride, start=2):
            x = x if step == 1 else g(aten.slice.Tensor, x, d, None, None, step)
        x = g(aten.permute.default, x, [0, *range(2, n + 2), 1])
        weight = g(aten.reshape.default, conv.weight, [conv.out_channels, conv.in_channels])
        y = g(aten.linear.default, x, weight, conv.bias)
        return g(aten.permute.default, y, [0, n + 1, *range(1, n + 1)])


def _as_linear_refusal(conv: Convolution) -> Refusal | None:
    if conv.groups > 1:
        return Refusal(f"its channels are in {conv.groups} groups, and a linear layer has one", conv.node,
                       "set groups=1")  # fmt: skip
    if any(amount for pair in conv.padding for amount in pair):
        return Refusal("the convolution pads its input", conv.node, "set padding=0")
    return None
