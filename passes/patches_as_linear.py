"""A convolution whose stride is its kernel, a patch embedding, as a linear layer over patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal, convolve, sizes_refusal, spatial_sizes
from rewrite.ops import Convolution, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class PatchesAsLinear(Rule):
    r"""Compute a convolution whose windows neither overlap nor leave gaps as a linear layer over patches.

    .. math:: y_{o,u} = b_o + \sum_{c,i} W_{o,c,i}\, x_{c,\,ku+i} = b_o + \sum_{m} W'_{o,m}\, z_{u,m},\quad
        z_{u,(c,i)} = x_{c,\,ku+i},\quad W'_{o,(c,i)} = W_{o,c,i}

    as the patch embeddings of vision transformers (Dosovitskiy et al. 2021). The channels of a patch go before its
    positions, as they do in the kernel. What an image has beyond its last whole patch is cut off, as the convolution
    does. Every output sums the same products, so non-finite values go where they went.

    Attributes:
        pointwise: a 1x1 convolution over patches as channels, which may have groups, in place of the linear layer.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a convolution whose stride is its kernel"

    pointwise: bool = False

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution among ``dirty`` whose stride is its kernel, 1x1 ones aside."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.transposed or conv.stride != conv.kernel or set(conv.kernel) == {1}:
                continue
            refusal = convolution_refusal(conv) or self._refusal(conv) or sizes_refusal(conv.input)
            if refusal is not None:
                yield Miss(self.name, node, refusal, (node,))
            else:
                yield Match(self, (node,), (node,), {"conv": conv})

    def _refusal(self, conv: Convolution) -> Refusal | None:
        if any(amount for pair in conv.padding for amount in pair):
            return Refusal("the convolution pads its input", conv.node, "set padding=0")
        if any(d > 1 and k > 1 for d, k in zip(conv.dilation, conv.kernel, strict=True)):
            return Refusal("the taps of its kernel are apart", conv.node, "set dilation=1")
        if conv.groups > 1 and not self.pointwise:
            return Refusal(f"its channels are in {conv.groups} groups, and a linear layer has one", conv.node,
                           f"write {self.name}{{pointwise=True}}")  # fmt: skip
        return None

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The patches, the layer, and the channels back in dimension 1."""
        conv: Convolution = match.conv
        n, area = conv.dims, math.prod(conv.kernel)
        counts = [size // k for size, k in zip(spatial_sizes(conv.input), conv.kernel, strict=True)]
        x = conv.input
        for d, (count, k) in enumerate(zip(counts, conv.kernel, strict=True), start=2):
            if count * k < spatial_sizes(conv.input)[d - 2]:
                x = g(aten.slice.Tensor, x, d, 0, count * k)
        parts = [size for pair in zip(counts, conv.kernel, strict=True) for size in pair]
        x = g(aten.reshape.default, x, [-1, conv.in_channels, *parts])
        across, within = range(2, 2 * n + 2, 2), range(3, 2 * n + 2, 2)
        depth = conv.in_channels // conv.groups * area
        if self.pointwise:
            x = g(aten.permute.default, x, [0, 1, *within, *across])
            x = g(aten.reshape.default, x, [-1, conv.in_channels * area, *counts])
            weight = g(aten.reshape.default, conv.weight, [conv.out_channels, depth, *[1] * n])
            y = convolve(g, x, weight, conv.bias, stride=[1] * n, padding=[(0, 0)] * n, dilation=[1] * n,
                         groups=conv.groups)  # fmt: skip
        else:
            x = g(aten.permute.default, x, [0, *across, 1, *within])
            x = g(aten.reshape.default, x, [-1, *counts, depth])
            weight = g(aten.reshape.default, conv.weight, [conv.out_channels, depth])
            y = g(aten.permute.default, g(aten.linear.default, x, weight, conv.bias), [0, n + 1, *range(1, n + 1)])
        return y
