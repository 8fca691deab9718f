"""A whole graph in float64: the reference that both the model and its rewritten program are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from rewrite import compat, evaluate
from rewrite.verify.precision import full_precision
from rewrite.weights import Evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.graph import Graph


def evaluate_double(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """All outputs of a graph for flat inputs, values of mutations last, in float64.

    What depends on weights alone is computed in its own dtypes, for its rounding is part of the model. Values are freed
    after their last use.
    """
    evaluator = Evaluator(graph.weights.__getitem__)
    last = _last_uses(graph)
    env: dict[Node, Any] = dict(zip(graph.inputs, map(evaluate.lift, inputs), strict=True))

    def read(node: Node) -> Any:
        if node not in env:  # a constant
            env[node] = compat.tree_map(evaluate.lift, evaluator.rounded(node))
        return env[node]

    with torch.no_grad(), full_precision(graph.weights.values()):
        for node in graph.nodes:
            if node.op != "call_function" or graph.is_constant(node):
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), read)
            env[node] = evaluate.call(node, args, kwargs, double=True)
            for done in last.get(node, ()):
                env.pop(done, None)
        return [read(value) if isinstance(value, fx.Node) else value for value in graph.outputs]


def _last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """For each node, the values that nothing after it reads."""
    seen: set[Node] = set()
    last: dict[Node, list[Node]] = {}
    for node in reversed(list(graph.nodes)):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                last.setdefault(node, []).append(source)
    return last
