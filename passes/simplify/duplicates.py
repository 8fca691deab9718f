"""Common subexpressions: the same operator on the same operands, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.memory import is_returned
from rewrite.graph import is_pure
from rewrite.ops import arguments
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule
from rewrite.weights import is_algebra

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph


@dataclass(frozen=True)
class MergeDuplicates(Rule):
    """Compute a value once that is computed twice: same operator, same operands, no randomness.

    Two values that the model returns stay two. Weight code of the model and the same code made by a rule stay two:
    they are rounded in different places.
    """

    fidelity = Fidelity.BITWISE
    radius = 1
    starts = "the same operator on the same operands, twice"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each of ``dirty`` that another node repeats."""
        for node in dirty:
            candidates = _candidates(graph, node) if is_pure(node) else []
            other = next((other for other in candidates if other is not node and _same_call(node, other)), None)
            if other is not None:
                yield self._pair(*sorted((node, other)))

    def _pair(self, first: Node, second: Node) -> Match | Miss:
        if is_returned(first) and is_returned(second):
            refusal = Refusal("the model returns both values, which would share memory", first,
                              f"return what depends on only one of {called(first)} and {called(second)}")  # fmt: skip
            return Miss(self.name, second, refusal, (first, second))
        return Match(self, (first, second), (first, second))

    def rewrite(self, match: Match, g: Builder) -> tuple[Node, Node]:
        """The earlier node, for the readers of both."""
        kept = g.keep(match.nodes[0])
        return kept, kept


def _candidates(graph: Graph, node: Node) -> list[Node]:
    """Nodes with the same target that share an operand; without operands, all with the same target."""
    for operand in node.all_input_nodes:
        return [user for user in operand.users if user.target == node.target]
    return list(graph.fx.find_nodes(op="call_function", target=node.target))


def _same_call(a: Node, b: Node) -> bool:
    return is_algebra(a) == is_algebra(b) and _operands(a) == _operands(b)


def _operands(node: Node) -> str:
    """The operands as text: 1, 1.0 and True promote otherwise, 0.0 and -0.0 differ, each node has its own name."""
    given = arguments(node) if isinstance(node.target, torch._ops.OpOverload) else (node.args, node.kwargs)
    return repr(given)
