"""The zeros around a convolution's input, added by an operator of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal, convolve
from rewrite.ops import Convolution, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class ExplicitPadding(Rule):
    r"""Add the zeros around the input of a convolution by an operator of their own.

    .. math:: y = w * \mathrm{pad}(x) + b

    Libraries leave their fast code for a slow one where wide kernels meet implicit padding: oneDNN does for kernels
    wider than 14 with channels first. The same products are summed, those with zeros among them, so an infinite or NaN
    weight makes NaN where it did, too.

    Attributes:
        width: the least size of the kernel along its last dimension.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a convolution with a wide kernel"

    width: int = 15

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution with a wide kernel among ``dirty``."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.kernel[-1] < self.width:
                continue
            refusal = convolution_refusal(conv)
            if refusal is None and not any(amount for pair in conv.padding for amount in pair):
                refusal = Refusal("it pads nothing", node)
            yield self.at(node, refusal, conv=conv)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The padding, and the convolution without."""
        conv: Convolution = match.conv
        amounts = [amount for pair in reversed(conv.padding) for amount in pair]
        x = g(aten.constant_pad_nd.default, conv.input, amounts)
        return convolve(g, x, conv.weight, conv.bias, stride=conv.stride, padding=[(0, 0)] * conv.dims,
                        dilation=conv.dilation, groups=conv.groups)  # fmt: skip
