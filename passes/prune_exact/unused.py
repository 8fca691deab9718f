"""Remove channels that every reader multiplies by zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.prune_exact import ends
from passes.prune_exact.rule import Judgement, RemoveChannels
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.prune_exact.flow import Flow
    from rewrite.graph import Graph


@dataclass(frozen=True)
class RemoveUnusedChannels(RemoveChannels):
    r"""Remove the output channels of a layer to which all layers that read them give weights of zero.

    .. math:: W_{po} = 0\ \forall p: \quad \sum_c W_{pc} y_c = \sum_{c \neq o} W_{pc} y_c

    What is between the two, activations, norms, pooling, depthwise convolutions, loses the channel too. A removed
    channel that is infinite or NaN made the model's result NaN, and does so no more; no finite result changes.
    """

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True
    starts = "a layer of whose channels some have weights of zero in all layers that read them"

    def starts_at(self, graph: Graph, node: Node) -> tuple[Node, int] | None:
        """What a layer with weights of zero for a channel reads."""
        layer = ends.dense(node)
        if layer is None or not ends.legible(graph, layer) or not bool(ends.unused(graph, layer).any()):
            return None
        return layer.input, ends.input_axis(layer)

    def judge(self, flow: Flow) -> Judgement:
        """Classes that layers make and read, nowhere with another weight than zero."""
        used: set[int] = set()
        unused: set[int] = set()
        for layer in flow.readers.values():
            for label, zero in zip(flow.classes[layer.input], ends.unused(flow.graph, layer).tolist(), strict=True):
                (unused if zero else used).add(label)
        made = {label for node in flow.sources for label in flow.classes[node]}
        free = (unused - used) & made
        blocked = free & flow.pins.keys()
        return Judgement(flow.pins.__getitem__, wanted=free - blocked, blocked=blocked)
