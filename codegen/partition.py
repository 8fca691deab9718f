"""A graph in two parts: what computes new tensors, for a runtime, and what only views them, for torch.

A caller sees which outputs are views of inputs, of weights and of each other, and their strides. A runtime knows
neither, so it gets the operators up to the last ones that make fresh memory, and torch makes the views of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node

from rewrite.aliases import alias_sources

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Facts:
    """Shape, strides and dtype of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        """New memory for such a tensor."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="cpu")


class Reference(fx.Interpreter):
    """Runs a graph operator by operator, and notes what its values are.

    Attributes:
        facts: of each tensor.
        numbers: the values that are no tensors, which the sizes of the inputs decide.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor]):
        super().__init__(nn.Module(), graph=graph.fx)
        self._weights = weights
        self.facts: dict[Node, Facts] = {}
        self.numbers: dict[Node, Any] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        """A weight."""
        return self._weights[str(target)]

    def run_node(self, n: Node) -> Any:
        """One value."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.facts[n] = Facts(tuple(value.shape), value.stride(), value.dtype)
        elif n.op != "output" and not isinstance(value, (tuple, list)):
            self.numbers[n] = value
        return value

    def outputs(self, inputs: Sequence[Any]) -> list[Any]:
        """The flat outputs for flat inputs."""
        return list(self.run(*inputs, enable_io_processing=False))


def fresh_results(graph: Graph, numbers: Collection[Node]) -> list[Node]:
    """The operators whose memory the outputs are, inputs and weights left out.

    Args:
        graph: not changed.
        numbers: the nodes that are no tensors.
    """
    found: dict[Node, None] = {}
    stack = [value for value in graph.outputs if isinstance(value, Node)]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.op != "call_function" or node in numbers:
            continue
        # a product of one operand may be a view of it, and is no reason to compute products here
        if not alias_sources(node) or node.target is aten.einsum.default:
            found[node] = None
            continue
        for argument in node.all_input_nodes:
            if argument not in seen:
                seen.add(argument)
                stack.append(argument)
    return [node for node in graph.nodes if node in found]


def extract(
    graph: Graph,
    results: Sequence[Any],
    given: Collection[Node],
    numbers: Mapping[Node, Any],
    baked: Mapping[str, Tensor],
) -> tuple[GraphModule, list[Node]]:
    """The operators of a graph that compute some of its values, as a module that returns a tuple of them.

    Args:
        graph: not changed.
        results: nodes, or plain values.
        given: the nodes that are arguments.
        numbers: the nodes that are constants, with their values.
        baked: the weights that become attributes.

    Returns:
        The module, and those of ``given`` that it takes, in order.
    """
    needed = _needed(results, given, numbers)
    nodes, mapping = fx.Graph(), dict[Node, Any](numbers)
    takes = [node for node in graph.nodes if node in needed and node in given]
    for node in takes:
        mapping[node] = nodes.placeholder(node.name)
    for node in graph.nodes:
        if node not in needed or node in mapping:
            continue
        if node.op == "get_attr":
            mapping[node] = nodes.node_copy(node)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), mapping.__getitem__)
        mapping[node] = nodes.create_node("call_function", node.target, args, kwargs, node.name)
    nodes.output(tuple(mapping[value] if isinstance(value, Node) else value for value in results))
    read = {str(node.target) for node in nodes.nodes if node.op == "get_attr"}
    return GraphModule({name: baked[name] for name in read}, nodes).eval(), takes


def _needed(results: Sequence[Any], given: Collection[Node], numbers: Mapping[Node, Any]) -> set[Node]:
    stack = [value for value in results if isinstance(value, Node)]
    found = set(stack)
    while stack:
        node = stack.pop()
        if node in given or node in numbers:
            continue
        for argument in node.all_input_nodes:
            if argument not in found:
                found.add(argument)
                stack.append(argument)
    return found
