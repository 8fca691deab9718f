"""A depthwise convolution whose channels use few taps as one of an inception mixer: identity, square, and bands."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.taps import axes_of, best_cuts, convolve_part, zero_borders
from rewrite.errors import PipelineError
from rewrite.ops import Convolution, Pad, view_as
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor
    from torch.fx import Node

    from passes.taps import Cut
    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Branch:
    """Channels that use the same part of a kernel.

    Attributes:
        channels: in order.
        cuts: what of the kernel they do not use; None where they pass through as they are.
    """

    channels: tuple[int, ...]
    cuts: tuple[Cut, ...] | None


@dataclass(frozen=True)
class SplitSupport(Rule):
    r"""Split a depthwise convolution by the taps that its channels use, as the mixer of an InceptionNeXt.

    .. math:: y_c = \begin{cases} x_c & W_c = \delta,\ b_c = 0\\ W_c[S_{k(c)}] * x_c + b_c & \text{otherwise}\end{cases}

    where :math:`S_k` is the centre, a small square, a row or a column through the centre, or the whole kernel
    (Yu et al., InceptionNeXt, 2024). Each branch is a convolution over the smallest part of the kernel that its
    channels use; a channel whose kernel is one at the centre passes through. Channels of one support that do not stand
    side by side are brought together before and put back behind, which is a copy each.

    There are fewer multiply-accumulates and there may be more memory traffic, so it is a choice. A tap of zero times an
    infinite or missing input is NaN in the model; without the tap that output is what the other taps give. So the
    outputs are equal for finite inputs.

    Attributes:
        square: the side of the square, an odd number.
    """

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    reads_values = True
    starts = "a depthwise convolution with zeros in its kernels"

    square: int = 3

    def __post_init__(self) -> None:
        if self.square < 1 or self.square % 2 == 0:
            raise PipelineError(f"square is {self.square}; give an odd number, the side of a square around the centre")

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each depthwise convolution of two dimensions whose channels use fewer taps."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.transposed or conv.dims != 2 or not is_depthwise(conv):
                continue
            if not graph.is_constant(conv.weight) or not (graph.value(conv.weight) == 0).any():
                continue
            refusal = affine.layer_refusal(graph, conv)
            if refusal is not None:
                yield Miss(self.name, node, refusal, (node,))
            elif len(branches := self._branches(graph, conv)) > 1:
                yield Match(self, (node,), (node,), {"conv": conv, "branches": branches})

    def _branches(self, graph: Graph, conv: Convolution) -> list[Branch]:
        """The branches, no two of one kernel, that of channel 0 first."""
        weight = graph.value(conv.weight).cpu()
        used = (weight != 0).flatten(0, 1)
        masks = _supports(conv, self.square)
        areas = torch.tensor([int(mask.sum()) for mask in masks])
        fits = torch.stack([~(used & ~mask).flatten(1).any(1) for mask in masks], dim=1)  # [C, supports]
        kinds = torch.where(fits, areas, areas.max() + 1).argmin(1)
        bias = None if conv.bias is None else graph.value(conv.bias).cpu()
        kinds[_passing(conv, weight, bias)] = -1
        found: dict[tuple[Cut, ...] | None, list[int]] = {}
        for kind in dict.fromkeys(kinds.tolist()):
            channels = (kinds == kind).nonzero().flatten()
            cuts = None if kind < 0 else tuple(best_cuts(axes_of(conv), zero_borders(weight[channels])))
            found.setdefault(cuts, []).extend(channels.tolist())
        return [Branch(tuple(sorted(channels)), cuts) for cuts, channels in found.items()]

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The branches side by side."""
        conv, branches = match.conv, match.branches
        x, weight, bias = conv.input, conv.weight, conv.bias
        order = [channel for branch in branches for channel in branch.channels]
        index = None if order == sorted(order) else _index(g, weight, order)
        if index is not None:
            x, weight = g(aten.index_select.default, x, 1, index), g(aten.index_select.default, weight, 0, index)
            bias = None if bias is None else g(aten.index_select.default, bias, 0, index)
        parts, start, axes = [], 0, axes_of(conv)
        for branch in branches:
            stop = start + len(branch.channels)
            part = g(aten.slice.Tensor, x, 1, start, stop)
            if branch.cuts is not None:
                kernel = g(aten.slice.Tensor, weight, 0, start, stop)
                shift = None if bias is None else g(aten.slice.Tensor, bias, 0, start, stop)
                part = convolve_part(g, conv, axes, branch.cuts, x=part, weight=kernel, bias=shift,
                                     groups=stop - start)  # fmt: skip
            parts.append(part)
            start = stop
        y = g(aten.cat.default, parts, 1)
        if index is not None:
            y = g(aten.index_select.default, y, 1, g(aten.argsort.default, index))
        return y


def is_depthwise(conv: Convolution) -> bool:
    """Whether each of several channels has a kernel of its own."""
    return conv.groups == conv.in_channels == conv.out_channels > 1


def _centre(conv: Convolution) -> tuple[int, ...]:
    """The tap that reads straight ahead, also behind a padding of its own; the middle one where there is none."""
    pad = view_as(conv.input, Pad)
    before = [(0, 0)] * conv.dims if pad is None else [*[(0, 0)] * conv.dims, *pad.amounts][-conv.dims :]
    places = []
    for (low, _), (more, _), step, count in zip(conv.padding, before, conv.dilation, conv.kernel, strict=True):
        place, rest = divmod(low + more, step)
        places.append(count // 2 if rest or not 0 <= place < count else place)
    return tuple(places)


def _supports(conv: Convolution, square: int) -> list[Tensor]:
    """Masks ``[*kernel]`` of the centre, the row, column and square around it, and of all taps."""
    rows, columns = ((torch.arange(n) - place).abs() for n, place in zip(conv.kernel, _centre(conv), strict=True))
    row, column = (rows == 0)[:, None], (columns == 0)[None, :]
    near = (rows <= square // 2)[:, None] & (columns <= square // 2)[None, :]
    masks = row & column, row, column, near, torch.tensor(True)
    return [mask.expand(conv.kernel) for mask in masks]


def _passing(conv: Convolution, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Which channels pass through as they are."""
    one = torch.zeros(conv.kernel, dtype=weight.dtype)
    if keeps_position(conv):
        one[tuple(low // step for (low, _), step in zip(conv.padding, conv.dilation, strict=True))] = 1
    same = (weight[:, 0] == one).flatten(1).all(1) & one.any()
    return same if bias is None else same & (bias == 0)


def keeps_position(conv: Convolution) -> bool:
    """Whether there is an output for each position of the input, and a tap that reads there."""
    axes = axes_of(conv)
    whole = all(axis.low + axis.high == axis.step * (axis.count - 1) for axis in axes)
    return set(conv.stride) == {1} and whole and all(axis.low % axis.step == 0 for axis in axes)


def _index(g: Builder, like: Node, order: Sequence[int]) -> Node:
    """A vector of whole numbers on the device of ``like``, built from runs of neighbours."""
    count = len(order)
    ones = g(aten.new_ones.default, like, [count], dtype=torch.int64)
    numbers = g(aten.sub.Tensor, g(aten.cumsum.default, ones, 0), 1)
    starts = [i for i, (a, b) in enumerate(pairwise(chain([-2], order))) if b != a + 1]
    runs = sorted((order[i], stop - i, place) for place, (i, stop) in enumerate(pairwise([*starts, count])))
    pieces = g(aten.split_with_sizes.default, numbers, [length for _, length, _ in runs])
    placed = sorted((place, i) for i, (_, _, place) in enumerate(runs))
    return g(aten.cat.default, [g(operator.getitem, pieces, i) for _, i in placed])
