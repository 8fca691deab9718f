"""What all rules that fold a map have in common: which nodes they look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewrite.rule import Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from passes.fold_affine.maps import Map
    from rewrite.graph import Graph


@dataclass(frozen=True)
class FoldMap(Rule, abstract=True):
    """Fold a map into layers. Subclasses say what is a map, and what becomes of one."""

    radius = 8

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The map that a node is."""
        raise NotImplementedError

    def look(self, graph: Graph, mapped: Map) -> Match | Miss | None:
        """The match or miss of a map; None where nobody would expect one."""
        raise NotImplementedError

    def candidates(self, dirty: Iterable[Node]) -> Iterable[Node]:
        """The nodes that may be maps whose match or miss is another one when ``dirty`` nodes have changed."""
        return dirty

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each map among the candidates that has to do with a layer."""
        for node in self.candidates(dirty):
            # the model's own weight code (weight standardization) runs as it is written
            mapped = None if graph.is_constant(node) else self.read(graph, node)
            found = self.look(graph, mapped) if mapped is not None else None
            if found is not None:
                yield found
