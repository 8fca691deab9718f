"""Merge two layers in a row, with no activation between them, into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes import affine
from passes.costs import width
from passes.pair import Pair, below
from rewrite.flops import Sizes
from rewrite.ops import Convolution, Linear, view
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph


@dataclass(frozen=True)
class MergeLinear(Rule):
    r"""Merge a linear layer or a convolution with the one that it reads into one layer, where that is cheaper.

    .. math:: W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2)

    Linear layers, 1x1 convolutions, a 1x1 convolution before or behind one of several taps, and two of several taps,
    whose kernels are convolved; also as the bundling of random features with the layer behind them (Sehanobish et al.
    2024), and as the sequence of 1x1 and k x k in a diverse branch block (Ding et al. 2021). Permutations, reshapes and
    copies between the two stay, and so does padding that repeats or mirrors, behind a layer of one tap.

    A second convolution that pads with zeros would see something else there in the merged form: the bias of the first
    one, or what its taps find at the border. So the first one has to be without bias, and of one tap in each dimension
    that is padded, or padded itself so far that it ends in zeros.

    The number of layers falls, and neither the floating-point operations nor the bytes of weights rise. Both are
    counted from the shapes, the weights as they are when they are folded, and those that others read too as kept. Where
    the value between is narrow (a bottleneck, a depthwise convolution before a 1x1) two layers are the cheaper form.

    An infinite or NaN intermediate result spreads no further than the input's would; one that only overflows between
    the two becomes finite.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "two layers in a row with no activation between them"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each layer among ``dirty`` that reads another one."""
        for node in dirty:
            second = view(node)
            if isinstance(second, (Convolution, Linear)) and not graph.is_constant(node):
                found = self._look(graph, second)
                if found is not None:
                    yield found

    def _look(self, graph: Graph, second: affine.Layer) -> Match | Miss | None:
        source, between, channels = below(second)
        first = view(source)
        if not isinstance(first, (Convolution, Linear)) or graph.is_constant(source):
            return None
        if channels != affine.channel_axis(first):  # they mix different dimensions, as in an MLP mixer
            return None
        if not width(first)[1]:
            return None  # the result is the second one's bias, and no number of channels between makes two layers one
        nodes = (source, *(step.node for step in between), second.node)
        pair = Pair(first, second, between)
        refusal = affine.layer_refusal(graph, first) or affine.layer_refusal(graph, second) or pair.form_refusal()
        cost = None if refusal is not None else pair.cost_refusal(Sizes(graph))
        if cost is not None:
            return Miss(self.name, second.node, cost)  # nothing would be saved, so nothing is said to have matched
        refusal = refusal or pair.border_refusal()
        if refusal is not None:
            return Miss(self.name, second.node, refusal, nodes)
        return Match(self, nodes, (second.node,), {"pair": pair})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The merged layer, before or behind what stood between the two."""
        return match.pair.build(g)  # type: ignore[no-any-return]
