"""A convolution over a sequence as one over an image of one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal, convolve
from rewrite.ops import Convolution, view_as
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Conv1dAsConv2d(Rule):
    r"""Compute a convolution over ``[N, C, L]`` as one over ``[N, C, 1, L]`` with kernels of one row.

    .. math:: y_{n,o,0,u} = b_o + \sum_{c,i} W_{o,c,0,i}\, x_{n,c,0,su+di-p}

    Libraries and compilers lay images out with their channels last, pack their kernels, and fuse what follows, and do
    none of this for sequences. The sums are the same, so non-finite values go where they went.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    starts = "a convolution over [N, C, L]"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each one-dimensional convolution among ``dirty``."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is not None and conv.dims == 1:
                yield self.at(node, convolution_refusal(conv), conv=conv)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """An image of one row, the convolution, and the row."""
        conv: Convolution = match.conv
        x = g(aten.unsqueeze.default, conv.input, 2)
        weight = g(aten.unsqueeze.default, conv.weight, 2)
        y = convolve(g, x, weight, conv.bias, stride=(1, *conv.stride), padding=((0, 0), *conv.padding),
                     dilation=(1, *conv.dilation), groups=conv.groups)  # fmt: skip
        return g(aten.squeeze.dim, y, 2)
