"""Parts of a program made ready to be timed by themselves: drawn inputs in given layouts, weights folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from rewrite import printer
from rewrite.lowering import record
from rewrite.provenance import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Node

    from rewrite.fragment import Fragment
    from rewrite.graph import Graph


@dataclass(frozen=True)
class Rehearsal:
    """A fragment for inputs of certain sizes and strides.

    Attributes:
        module: the operators that depend on a call; what depends on weights alone is computed, and are its attributes.
            Nodes have recorded values.
        inputs: drawn values.
    """

    module: GraphModule
    inputs: tuple[Any, ...]

    @property
    def key(self) -> str:
        """What is computed, as text: operators, sizes, strides and dtypes, no names and no values."""
        attributes = [_described(getattr(self.module, str(node.target)))
                      for node in self.module.graph.nodes if node.op == "get_attr"]  # fmt: skip
        inputs = [_described(value) for value in self.inputs]
        return f"{printer.fingerprint(self.module.graph.nodes)} {inputs} {attributes}"


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{list(value.stride())}@{value.device.type}"


def rehearsal(graph: Graph, fragment: Fragment, values: Mapping[Node, Any]) -> Rehearsal:
    """A fragment over nodes of a graph, whose values are as these fake ones.

    Raises:
        Exception: whatever an operator raises.
    """
    known: dict[Node, Any] = {}  # what depends on weights alone
    nodes = fx.Graph()
    mapping: dict[Node, Any] = {}
    inputs: list[Any] = []
    for node, stand_in in fragment.inputs.items():
        value = values[node]
        if graph.is_constant(node):
            known[stand_in] = _weight(graph, node, value)
        elif isinstance(value, Tensor):
            mapping[stand_in] = nodes.placeholder(f"x{len(inputs)}")
            inputs.append(_drawn(value))
        else:
            mapping[stand_in] = value
    attributes: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in fragment.fx.nodes:
            if node.op == "get_attr":
                known[node] = fragment.constants[str(node.target)]
            elif node.op == "call_function" and all(argument in known for argument in node.all_input_nodes):
                args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
            elif node.op == "call_function":
                for argument in node.all_input_nodes:
                    if argument in known and argument not in mapping:
                        mapping[argument] = _attribute(nodes, attributes, known[argument])
                args, kwargs = fx.map_arg((node.args, node.kwargs), mapping.__getitem__)
                mapping[node] = nodes.create_node("call_function", node.target, args, kwargs)
                mapping[node].meta.update({KEY: node.meta[KEY]} if KEY in node.meta else {})
    nodes.output(tuple(mapping[node] for node in fragment.outputs))
    module = GraphModule(attributes, nodes)
    record(module, inputs)
    return Rehearsal(module, tuple(inputs))


def _attribute(nodes: fx.Graph, attributes: dict[str, Tensor], value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    name = f"weight{len(attributes)}"
    attributes[name] = value
    return nodes.create_node("get_attr", name)


def _weight(graph: Graph, node: Node, value: Any) -> Any:
    """A value for a constant: numbers that are neither large nor tiny, integers as they are."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() or value.is_complex():
        return _drawn(value)
    return graph.value(node)


def _drawn(value: Tensor) -> Tensor:
    """A tensor like a fake one, of the same strides unless elements share memory; no generator of others is used."""
    shared = any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True))
    strides = torch.empty(value.shape, device="meta").stride() if shared else value.stride()
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    if value.is_floating_point() or value.is_complex():
        return made.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05)
    return made.zero_()
