"""Graphs as fragments over their inputs and weights, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from rewrite import evaluate
from rewrite.fragment import Fragment
from rewrite.graph import Graph


@dataclass(frozen=True)
class Program:
    """A whole graph as a fragment.

    Attributes:
        graph: the graph.
        fragment: the same nodes; a placeholder stands for each input and for each weight.
    """

    graph: Graph
    fragment: Fragment

    @classmethod
    def of(cls, graph: Graph) -> Program:
        """That of a graph; what the graph returns besides tensors and numbers of nodes is left out."""
        fragment, mapping = Fragment(), dict[Node, Node]()
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                stand_in = fragment.fx.placeholder(node.name)
                stand_in.meta = dict(node.meta)
                mapping[node] = fragment.inputs[node] = stand_in
            elif node.op == "call_function":
                mapping[node] = fragment.fx.node_copy(node, mapping.__getitem__)
        fragment.outputs = tuple(mapping[output] for output in graph.outputs if isinstance(output, Node))
        return cls(graph, fragment)

    def values(self, inputs: Sequence[Any], double: bool = False) -> dict[Node, Any]:
        """A value for each boundary node of the fragment: the flat inputs and the weights.

        With ``double`` all of them in float64, and what was folded computed again from its sources, so that nothing
        was rounded in between.
        """
        weights = dict(self.graph.weights)
        if double:
            weights = {name: evaluate.lift(tensor) for name, tensor in weights.items()}
            program = self.graph.program
            if all(name in weights for name in program.sources):
                weights |= program.evaluate(weights, evaluate.lift_dtype)
            inputs = [evaluate.lift(value) for value in inputs]
        values: dict[Node, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        values |= {node: weights[str(node.target)] for node in self.graph.nodes if node.op == "get_attr"}
        return values

    def environment(self, values: dict[Node, Any]) -> dict[Node, Any]:
        """The float64 value of each node of the fragment. Gradients flow where they are enabled."""
        env = self.fragment.environment(values)
        evaluate.run(self.fragment.fx.nodes, env, double=True)
        return env

    def outputs(self, env: dict[Node, Any]) -> list[Any]:
        """The outputs in an environment."""
        return [env[node] for node in self.fragment.outputs]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs as a rewritten program computes them: weight algebra in float64, rounded once, then the rest."""
        values = self.values(inputs)
        constant = {node: self.graph.is_constant(node) for node in self.fragment.inputs}
        return list(self.fragment.evaluate_folded(values, constant))
