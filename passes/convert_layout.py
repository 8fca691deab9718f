"""What a convolution reads, copied to channels first or to channels last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.convolve import convolution_refusal
from rewrite.lowering import PLANAR_WIDTH, is_wide_depthwise
from rewrite.ops import Convolution, view_as
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class _ConvertLayout(Rule):
    """A rule that copies what a convolution reads; libraries compute in the layout that they find.

    By itself it saves nothing, so it is not offered: a selection decides on the layouts of a whole program.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a convolution"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution among ``dirty`` whose input was not converted before."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is not None and not is_conversion(conv.input):
                yield self.at(node, None if conv.transposed else convolution_refusal(conv), conv=conv)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The same convolution over the copy."""
        conv: Convolution = match.conv
        return g.again(conv.node, {conv.input: self._converted(g, conv.input, conv.dims)})

    def _converted(self, g: Builder, x: Node, dims: int) -> Node:
        raise NotImplementedError


@dataclass(frozen=True)
class ChannelsLast(_ConvertLayout):
    """Let a convolution read channels last, ``[N, *size, C]`` in memory; its result then has them last too.

    The sums are the same, in another order. Pays where what follows wants that layout as well, which the selection
    finds out for the whole program.
    """

    def _converted(self, g: Builder, x: Node, dims: int) -> Node:
        if dims in _FORMATS:
            return g(aten.clone.default, x, memory_format=_FORMATS[dims])
        last = g(aten.clone.default, g(aten.permute.default, x, [0, 2, 1]), memory_format=torch.contiguous_format)
        return g(aten.permute.default, last, [0, 2, 1])


@dataclass(frozen=True)
class ChannelsFirst(_ConvertLayout):
    """Let a convolution read channels first, ``[N, C, *size]`` in memory; its result then has them first too.

    The sums are the same, in another order; see :class:`ChannelsLast`.
    """

    def _converted(self, g: Builder, x: Node, dims: int) -> Node:
        return g(aten.clone.default, x, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class DepthwiseChannelsFirst(ChannelsFirst):
    """Let a depthwise convolution with a wide kernel read channels first where everything else has them last.

    On a CPU kernels of 10 to 14 columns have faster code in that layout, which pays for two conversions. Compilers lay
    out all convolutions alike, so this one is bound to what it reads when the program is lowered.

    Attributes:
        width: the least size of the kernel along its last dimension; compiled code binds none below the default.
    """

    choice = True
    starts = "a depthwise convolution with a wide kernel"

    width: int = PLANAR_WIDTH

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each depthwise convolution over images with a wide kernel among ``dirty``."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is not None and is_wide_depthwise(conv, self.width):
                yield from super().find(graph, (node,))


def is_conversion(node: Node) -> bool:
    """Whether a copy was made by one of these rules, so that it is there for its layout."""
    made = origin(node)
    return made is not None and made.rule in {
        rule.name for rule in (ChannelsLast, ChannelsFirst, DepthwiseChannelsFirst)
    }
