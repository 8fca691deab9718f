"""Remove channels that nothing reads: what lies beside the slices that are taken of a layer's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.prune_exact.rule import Judgement, RemoveChannels
from rewrite.ops import Piece, Slice, value, view
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.prune_exact.flow import Flow
    from rewrite.graph import Graph


@dataclass(frozen=True)
class RemoveUnreadChannels(RemoveChannels):
    r"""Remove the output channels of a layer of which no slice, piece of a split, or other reader is left.

    .. math:: y_o,\ o \in R \text{ read only}: \quad W' = W[R],\ b' = b[R]

    As where a block cuts its channels into equal parts and drops the remainder (YOLO-MS, Chen et al. 2023). No weight
    is looked at, so gradients stay what they are, zero for what is removed.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a layer of whose channels some are read by nothing"

    def starts_at(self, graph: Graph, node: Node) -> tuple[Node, int] | None:
        """What a slice or a piece of a split is taken of."""
        found = view(node)
        if not isinstance(found, (Slice, Piece)) or value(found.input).shape[found.dim] == value(node).shape[found.dim]:
            return None
        return found.input, found.dim

    def judge(self, flow: Flow) -> Judgement:
        """Classes of layers that neither a layer nor anything else reads."""
        unread = {label for node in flow.sources for label in flow.classes[node]} - flow.read
        blocked = unread & flow.pins.keys()
        return Judgement(flow.pins.__getitem__, wanted=unread - blocked, blocked=blocked)
