"""The graphs of a program as JSON.

Recorded values are not stored, only those of inputs and weights, and the shapes and dtypes that the others have to come
out as.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewrite.artifact import operators
from rewrite.artifact.literals import encode
from rewrite.artifact.names import identifier, weight_name
from rewrite.artifact.trees import tree_data
from rewrite.artifact.values import Scope
from rewrite.provenance import location, module_class, module_path, origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Node

    from rewrite.graph import Graph

_KINDS = {"placeholder": "input", "get_attr": "weight", "call_function": "call"}


def graphs_data(graphs: Mapping[str, Graph]) -> dict[str, Any]:
    """Graphs of one fake mode as JSON, by name. What many nodes share (modules, source lines, matches) is in tables.

    Raises:
        ArtifactError: a graph holds something that no other process can make.
    """
    first = next(iter(graphs.values()))
    values = [node.meta.get("val") for graph in graphs.values() for node in graph.inputs]
    writer = _Writer(Scope.of(first.fake_mode, values))
    written = {name: writer.graph(graph) for name, graph in graphs.items()}
    return {
        "symbols": writer.scope.hints(),
        "places": list(map(list, writer.places)),
        "origins": list(map(list, writer.origins)),
        "graphs": written,
    }


@dataclass
class _Writer:
    scope: Scope
    places: dict[tuple[Any, ...], int] = field(default_factory=dict)
    origins: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def graph(self, graph: Graph) -> dict[str, Any]:
        signature = graph.signature
        return {
            "nodes": [self._node(node) for node in graph.nodes if node.op != "output"],
            "outputs": encode(graph.outputs),
            "signature": {
                "in": tree_data(signature.in_spec),
                "out": tree_data(signature.out_spec),
                "arguments": [identifier(name) for name in signature.argument_names],
                "outputs": signature.outputs,
                "mutations": [[mutation.kind, mutation.target] for mutation in signature.mutations],
            },
            "folded": {
                "nodes": [self._node(node) for node in graph.program.fx.nodes],
                "results": {weight_name(name): node.name for name, node in graph.program.results.items()},
            },
        }

    def _node(self, node: Node) -> dict[str, Any]:
        value = node.meta.get("val")
        data: dict[str, Any] = {"kind": _KINDS[node.op], "name": node.name}
        if node.op == "call_function":
            data["target"] = operators.name_of(node.target)
            data["args"] = encode(list(node.args))
            data["kwargs"] = {identifier(key): encode(argument) for key, argument in node.kwargs.items()}
            data["type"] = self.scope.type_of(value)
        else:
            data["target"] = (identifier if node.op == "placeholder" else weight_name)(str(node.target))
            data["value"] = {"tensor": self.scope.data(value)} if isinstance(value, Tensor) else encode(value)
        line = location(node)
        where = (module_path(node), module_class(node))
        if line is not None or any(where):
            key = (*where, str(line).rpartition(":")[0], line.line, line.function, line.text) if line else where
            data["place"] = self.places.setdefault(key, len(self.places))
        made = origin(node)
        if made is not None:
            origin_key = (made.rule, made.match, made.nodes, made.algebra)
            data["origin"] = self.origins.setdefault(origin_key, len(self.origins))
        return data
