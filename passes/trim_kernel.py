"""Cut zeros off the border of a kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal
from passes.taps import Axis, axes_of, best_cuts, convolve_part, zero_borders
from rewrite.ops import Convolution, Pad, value, view_as
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from passes.taps import Cut
    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class TrimKernel(Rule):
    r"""Cut the taps off the border of a kernel that are zero in all channels, and the padding that they needed.

    .. math:: \sum_{i=0}^{k-1} W_i\, x_{su+di-\ell} = \sum_{i=a}^{k-1-b} W_i\, x_{su+di-\ell}
        = \sum_{i=0}^{k-1-a-b} W_{a+i}\, x_{su+di-(\ell-da)}

    Such kernels come from squashing long ones (Fu et al., Simple Hardware-Efficient Long Convolutions, 2023), from
    pruning, and from learned positions. Where the padding becomes negative, the input is cut. A padding of zeros before
    the convolution is cut too, as the long side of a causal one. Multiply-accumulates get strictly fewer, and no
    operator that copies is added: where torch could pad the smaller kernel only by one, fewer taps are cut.

    Of a kernel of zeros one tap stays. A tap of zero times an infinite or missing input is NaN in the model; without
    the tap that output is what the other taps give. So the outputs are equal for finite inputs.
    """

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True
    starts = "a convolution with zeros at the border of its kernel"
    keeps = (Convolution,)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution among ``dirty`` whose kernel has a border of zeros."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or set(conv.kernel) <= {1} or not graph.is_constant(conv.weight):
                continue
            zeros = zero_borders(graph.value(conv.weight))
            if any(map(any, zeros)):
                yield self._look(conv, zeros)

    def _look(self, conv: Convolution, zeros: Sequence[Cut]) -> Match | Miss:
        refusal = convolution_refusal(conv)
        if refusal is not None:
            return Miss(self.name, conv.node, refusal, (conv.node,))
        axes, pad = axes_of(conv), _zeros_before(conv)
        if pad is not None:
            before = [(0, 0)] * (conv.dims - len(pad.amounts)) + list(pad.amounts)
            axes = [replace(axis, low=axis.low + low, high=axis.high + high)
                    for axis, (low, high) in zip(axes, before, strict=True)]  # fmt: skip
            cuts = [_whole(axis, limit) for axis, limit in zip(axes, zeros, strict=True)]
        else:
            cuts = best_cuts(axes, zeros)
        nodes = (conv.node,) if pad is None else (pad.node, conv.node)
        if not any(map(any, cuts)):
            return Miss(self.name, conv.node, _uneven(conv), nodes)
        return Match(self, nodes, (conv.node,), {"conv": conv, "pad": pad, "axes": axes, "cuts": cuts})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The smaller convolution."""
        conv, pad = match.conv, match.pad
        return convolve_part(g, conv, match.axes, match.cuts, x=conv.input if pad is None else pad.input,
                             weight=conv.weight, bias=conv.bias, groups=conv.groups)  # fmt: skip


def _zeros_before(conv: Convolution) -> Pad | None:
    """The padding with zeros of spatial dimensions that this convolution alone reads."""
    pad = view_as(conv.input, Pad)
    if pad is None or pad.mode != "constant" or pad.fill != 0 or len(pad.node.users) > 1:
        return None
    fits = len(pad.amounts) <= conv.dims and all(amount >= 0 for pair in pad.amounts for amount in pair)
    return pad if fits and value(pad.node).dtype == value(pad.input).dtype else None


def _whole(axis: Axis, zeros: Cut) -> Cut:
    """All zeros of one dimension; of a kernel of zeros the tap in the middle stays."""
    if sum(zeros) < axis.count:
        return zeros
    middle = axis.count // 2
    return middle, axis.count - 1 - middle


def _uneven(conv: Convolution) -> Refusal:
    return Refusal("the zeros at the border of its kernel cannot be cut off without uneven padding", conv.node,
                   f"add the zeros around the input of {called(conv.node)} by F.pad, and set padding=0")  # fmt: skip
