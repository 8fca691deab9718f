"""Pointwise convolutions after average pooling instead of before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from rewrite.flops import Sizes, flops
from rewrite.ops import AveragePool, Convolution, view_as
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

_OPERATORS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)


@dataclass(frozen=True)
class AveragePoolBeforePointwise(Rule):
    r"""Average before a 1x1 convolution, where that is less arithmetic.

    .. math:: \frac{1}{k} \sum_i (W x_i + b) = W \Big(\frac{1}{k} \sum_i x_i\Big) + b

    The transitions of DenseNet (Huang et al., 2017) are norm, activation, 1x1 convolution and average pooling by two:
    pooled first, the convolution has a quarter of the elements. With a bias the factors of each window have to add up
    to one, which they do not where zeros of the padding count or the divisor is given.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "average pooling of a 1x1 convolution"
    keeps = (AveragePool, Convolution)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each average pool of a pointwise convolution among ``dirty``."""
        for node in dirty:
            pool = view_as(node, AveragePool)
            conv = None if pool is None else view_as(pool.input, Convolution)
            if pool is None or conv is None or not _is_pointwise(conv) or pool.dims != len(conv.kernel):
                continue  # a pool of more dimensions takes the rows of a batch for channels
            refusal = _refusal(graph, pool, conv)
            nodes = (conv.node, pool.node)
            if refusal is not None:
                yield Miss(self.name, node, refusal, nodes)
            else:
                yield Match(self, nodes, (node,), {"pool": pool, "conv": conv})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The pool, then the convolution."""
        pool, conv = match.pool, match.conv
        options = [list(pool.kernel), list(pool.stride), list(pool.padding), pool.ceil_mode, pool.counts_padding]
        options += [pool.divisor] if pool.divisor is not None else []
        pooled = g(_OPERATORS[pool.dims - 1], conv.input, *options)
        return affine.with_weights(g, conv, pooled, conv.weight, conv.bias)


def _is_pointwise(conv: Convolution) -> bool:
    return set(conv.kernel) == set(conv.stride) == {1} and not conv.transposed and conv.batched


def _refusal(graph: Graph, pool: AveragePool, conv: Convolution) -> Refusal | None:
    if any(map(any, conv.padding)):
        return Refusal("the 1x1 convolution pads its input", conv.node, "set padding=0")
    if conv.bias is not None and pool.divisor is not None:
        return Refusal("the divisor of the pool is given, so the bias would not be averaged", pool.node,
                       "leave divisor_override out, or set bias=False")  # fmt: skip
    if conv.bias is not None and pool.counts_padding and any(pool.padding):
        return Refusal("the pool counts zeros of its padding, so the bias would be less at the border", pool.node,
                       "set count_include_pad=False, or bias=False")  # fmt: skip
    sizes = Sizes(graph)
    before = flops(conv.node, sizes) + flops(pool.node, sizes)
    outputs = sizes.elements(pool.node) // max(1, conv.out_channels)
    pooling = flops(pool.node, sizes) * conv.in_channels // max(1, conv.out_channels)
    after = pooling + 2 * outputs * conv.out_channels * (conv.in_channels // conv.groups)
    if after < before:
        return None
    return Refusal(f"pooling first takes {after} operations, and {called(conv.node)} with the pool behind it {before}",
                   conv.node)  # fmt: skip
