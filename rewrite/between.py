"""What stands between a value and the operator that a rule would like to find there."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from rewrite.ops import is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Node

    from rewrite.graph import Graph

LIMIT = 4
"""A value that is further away has nothing to do with what is looked for."""


def between(graph: Graph, node: Node, wanted: Callable[[Node], bool]) -> tuple[Node, tuple[Node, ...]] | None:
    """The first wanted node on the way down from ``node``, and what is above it, ``node`` last.

    The way leads through operators with one operand that depends on the call's inputs. None where it forks, ends, or
    passes more than ``LIMIT`` operators.
    """
    passed: list[Node] = []
    while not wanted(node):
        operands = data_operands(graph, node)
        if len(passed) == LIMIT or len(operands) != 1:
            return None
        passed.append(node)
        node = operands[0]
    return node, tuple(reversed(passed))


def data_operands(graph: Graph, node: Node) -> list[Node]:
    """The tensors that an operator reads and that vary with the call; a ``getitem`` reads what its tuple is made of."""
    source: Any = node.args[0] if node.target is operator.getitem else node
    return [operand for operand in source.all_input_nodes if is_tensor(operand) and not graph.is_constant(operand)]
