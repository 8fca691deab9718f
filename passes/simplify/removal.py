"""The common part of all rules that replace an operator by one of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from passes.memory import layout_refusal, sharing_refusal
from rewrite.ops import Cast, Copy, same_type, view
from rewrite.rule import Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.graph import Graph
    from rewrite.ops import View


class Removal(Rule, abstract=True):
    """Replaces an operator that returns the values of one of its inputs by that input.

    The strides that readers see stay as they are recorded, and no two values that a caller holds come to share memory.
    """

    radius: ClassVar[int] = 1
    keeps = ()

    def source(self, found: View) -> Node | None:
        """The input whose values the operator returns, or None where it computes something."""
        raise NotImplementedError

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each of ``dirty`` that returns an input of its own."""
        for node in dirty:
            found = view(node)
            source = None if found is None else self.source(found)
            if found is None or source is None or not same_type(source, node):
                continue
            requested = found.layout if isinstance(found, (Copy, Cast)) else None
            shared = sharing_refusal(source, node)
            refusal = shared or layout_refusal(graph, source, node, requested)
            if refusal is None:
                yield Match(self, found.nodes, (node,), {"source": source})
            elif shared is not None or not graph.is_constant(node):  # weight code does not run at each call
                yield Miss(self.name, node, refusal, found.nodes)

    def rewrite(self, match: Match, g: object) -> Node:
        """The input itself."""
        return match.source  # type: ignore[no-any-return]
