"""The smaller or larger of a value and a constant number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rewrite.ops import Extreme, same_shape, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class ClampByConstant(Rule):
    """``minimum(x, c)`` and ``maximum(x, c)`` of a constant tensor of one number are clamps.

    As clamps they merge with their like and have a range (:class:`~passes.simplify.MergeClamps`). A constant that is
    trained is left alone. So is a number that not every dtype holds: as a tensor it would be rounded with the model.
    """

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True
    radius = 1
    starts = "the smaller or larger of a value and a constant number"
    keeps = (Extreme,)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each extreme of a value and a constant number among ``dirty``."""
        for node in dirty:
            found = view_as(node, Extreme)
            if found is None or not value(node).dtype.is_floating_point:
                continue
            for x, constant in ((found.left, found.right), (found.right, found.left)):
                if same_shape(x, node) and value(x).dtype == value(node).dtype and _is_number(graph, x, constant):
                    yield self._look(graph, found, x, constant)
                    break

    def _look(self, graph: Graph, found: Extreme, x: Node, constant: Node) -> Match | Miss:
        number = float(graph.value(constant))
        if any(float(torch.tensor(number, dtype=dtype)) != number for dtype in (torch.float16, torch.bfloat16)):
            name = "min" if found.larger else "max"
            refusal = Refusal(f"{number:g} is another number in other dtypes, or none", constant,
                              f"call clamp({name}={number:g}) instead")  # fmt: skip
            return Miss(self.name, found.node, refusal, (found.node,))
        return Match(self, (found.node,), (found.node,), {"x": x, "number": number, "larger": found.larger})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The clamp."""
        return g((aten.clamp_min if match.larger else aten.clamp_max).default, match.x, match.number)


def _is_number(graph: Graph, x: Node, constant: Node) -> bool:
    """Whether a constant is one number that nobody trains, beside a value that is no constant."""
    if graph.is_constant(x) or not graph.is_constant(constant) or value(constant).numel() != 1:
        return False
    stack, seen = [constant], {constant}
    while stack:
        node = stack.pop()
        if node.op == "get_attr" and graph.weights[str(node.target)].requires_grad:
            return False
        stack += [operand for operand in node.all_input_nodes if operand not in seen]
        seen.update(stack)
    return True
