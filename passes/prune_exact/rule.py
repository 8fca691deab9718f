"""What the rules that remove channels have in common: the search for flows, and the rewriting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from passes.prune_exact.ends import Reading
from passes.prune_exact.flow import explore
from passes.prune_exact.removal import Removal, settle
from rewrite.ops import View
from rewrite.rule import Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch.fx import Node

    from passes.prune_exact.ends import Layer
    from passes.prune_exact.flow import Flow
    from rewrite.fragment import Builder
    from rewrite.graph import Graph


@dataclass(eq=False)
class Judgement:
    """What a rule thinks of the classes of a flow.

    Attributes:
        reason: why one of the blocked classes has to stay.
        reading: what a layer makes of its input, given the channels of it that are left.
        wanted: classes that can go, as far as their readers are concerned.
        blocked: classes that could go but for one thing.
    """

    reason: Callable[[int], Refusal]
    reading: Callable[[Layer, list[int]], Reading] = lambda layer, kept: Reading(tuple(kept))
    wanted: set[int] = field(default_factory=set)
    blocked: set[int] = field(default_factory=set)


class RemoveChannels(Rule, abstract=True):
    """Removes channels from all values of a flow and from the layers at its ends.

    Each rewrite lowers the number of output channels of layers and with it the bytes of weights and the arithmetic, so
    the rules come to an end in any order.
    """

    keeps: ClassVar[tuple[type[View], ...] | None] = (View,)

    def starts_at(self, graph: Graph, node: Node) -> tuple[Node, int] | None:
        """A value whose flow is worth a look because of what ``node`` is, with the dimension of its channels."""
        raise NotImplementedError

    def judge(self, flow: Flow) -> Judgement:
        """Which classes can go, and which cannot for a reason that is worth telling."""
        raise NotImplementedError

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """The flows that begin, end or are cut at ``dirty``: a match or a miss for each, or both."""
        for node in dirty:
            start = self.starts_at(graph, node)
            flow = None if start is None else explore(graph, *start)
            if flow is not None:
                yield from self._look(flow)

    def _look(self, flow: Flow) -> Iterator[Match | Miss]:
        judgement = self.judge(flow)
        removed, spared = settle(flow, judgement.wanted)
        removal = Removal.of(flow, removed, judgement.reading) if removed else None
        refusal = None if removal is None else removal.refusal()
        if refusal is not None:
            spared |= dict.fromkeys(removed, refusal)
        for node in (*flow.sources, *flow.axes):
            label = next((k for k in flow.classes[node] if k in spared or k in judgement.blocked), None)
            if label is not None:
                yield self._miss(node, spared.get(label) or judgement.reason(label))
                break
        if removal is not None and refusal is None:
            yield Match(self, removal.nodes, removal.outputs, {"removal": removal})

    def _miss(self, node: Node, refusal: Refusal) -> Miss:
        seen = [part for part in (node, refusal.culprit) if part is not None and part.op == "call_function"]
        return Miss(self.name, node, refusal, tuple(seen))

    def rewrite(self, match: Match, g: Builder) -> list[Node]:
        """The readers, over values of fewer channels."""
        return match.removal.build(g)  # type: ignore[no-any-return]
