"""The graphs of a program from JSON: values are recorded again, by running operators on fake tensors.

Their shapes and dtypes have to be those that the file says: with another torch, an operator may have changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx import Node

from rewrite.artifact import operators
from rewrite.artifact.boundary import refusing
from rewrite.artifact.literals import decode
from rewrite.artifact.names import DAMAGED, identifier, weight_name
from rewrite.artifact.trees import tree_of
from rewrite.artifact.values import Scope
from rewrite.errors import ArtifactError
from rewrite.graph import Graph, Mutation, Signature, fake_call, is_mutating
from rewrite.provenance import KEY, Origin
from rewrite.report.json import restored
from rewrite.weights import WeightProgram

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_OPS = {"input": "placeholder", "weight": "get_attr"}


def graphs_of(
    data: Mapping[str, Any],
    *,
    device: torch.device | None = None,
    dtypes: Mapping[torch.dtype, torch.dtype] | None = None,
    kept: Collection[str] = (),
) -> dict[str, Graph]:
    """The graphs again, in one new fake mode and without tensors.

    Args:
        data: what :func:`graphs_data` gave.
        device: where they are to run; None for the recorded device.
        dtypes: for a recorded dtype of inputs and weights another one; then types are not compared with the file.
        kept: the names of weights whose dtypes stay.

    Raises:
        ArtifactError: the data is malformed, or operators here give other shapes or dtypes.
    """
    with refusing("the file holds no valid program"):
        scope = Scope.made(data["symbols"], device)
        reader = _Reader(scope, data["places"], data["origins"], dtypes or {}, frozenset(kept))
        graphs = {name: reader.graph(each) for name, each in data["graphs"].items()}
        signature = next(iter(graphs.values())).signature
        if any(graph.signature != signature for graph in graphs.values()):
            raise ArtifactError(f"the graphs {list(graphs)} are of different calls; {DAMAGED}")
        return graphs


@dataclass
class _Reader:
    scope: Scope
    places: list[Any]
    origins: list[Any]
    dtypes: Mapping[torch.dtype, torch.dtype]
    kept: frozenset[str]
    known: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._metas = dict(enumerate(_place_meta(*place) for place in self.places))
        keys = [spec.name for spec in fields(Origin)]
        made = (restored(Origin, dict(zip(keys, origin, strict=True))) for origin in self.origins)
        self._made = dict(enumerate(made))

    def graph(self, data: Mapping[str, Any]) -> Graph:
        nodes, named = self._nodes(data["nodes"])
        nodes.output(tuple(decode(data["outputs"], named.__getitem__, self.scope.device)))
        signature = _signature(data["signature"])
        folded, by_name = self._nodes(data["folded"]["nodes"])
        results = {name: by_name[node] for name, node in data["folded"]["results"].items()}
        # the copy finds what its nodes share, and goes on sharing it
        program = WeightProgram(folded, results).copy()
        graph = Graph(nodes, {}, signature, self.scope.mode, program)
        _check_call(graph)
        return graph

    def _nodes(self, data: Iterable[Mapping[str, Any]]) -> tuple[fx.Graph, dict[str, Node]]:
        nodes = fx.Graph()
        named: dict[str, Node] = {}
        for each in data:
            named[each["name"]] = self._node(nodes, each, named)
        return nodes, named

    def _node(self, nodes: fx.Graph, data: Mapping[str, Any], named: Mapping[str, Node]) -> Node:
        kind, name = data["kind"], data["name"]
        if kind == "call":
            target = operators.find(data["target"])
            args = tuple(decode(data["args"], named.__getitem__, self.scope.device))
            kwargs = {
                identifier(key): decode(each, named.__getitem__, self.scope.device)
                for key, each in data["kwargs"].items()
            }
            node = nodes.create_node("call_function", target, args, kwargs, name)
        else:
            target = (identifier if kind == "input" else weight_name)(data["target"])
            node = nodes.create_node(_OPS[kind], target, name=name)
        if node.name != name:
            raise ArtifactError(f"'{name}' is twice in the program; {DAMAGED}")
        if "place" in data:
            node.meta.update(self._metas[data["place"]])
        if "origin" in data:
            node.meta[KEY] = self._made[data["origin"]]
        node.meta["val"] = self._call(node, data, named) if kind == "call" else self._given(data)
        return node

    def _given(self, data: Mapping[str, Any]) -> Any:
        value = data["value"]
        if not isinstance(value, dict) or "tensor" not in value:
            return decode(value, _no_node, self.scope.device)
        kept = data["target"] in self.kept
        key = (_key(value, {}), kept)
        if key not in self.known:
            tensor = self.scope.tensor(value["tensor"])
            wanted = self.dtypes.get(tensor.dtype)
            if wanted is not None and not kept:
                with self.scope.mode:
                    tensor = tensor.to(wanted)
            self.known[key] = self.scope.interned(tensor)
        return self.known[key]

    def _call(self, node: Node, data: Mapping[str, Any], named: Mapping[str, Node]) -> Any:
        # values that are alike are one object, so equal calls are those on the same objects
        key = (data["target"], _key(data["args"], named), _key(data["kwargs"], named))
        if key not in self.known:
            self.known[key] = self._record(node, data)
        value, type_ = self.known[key]
        if not self.dtypes and type_ != data["type"]:
            raise ArtifactError(
                f"'{node.name}' ({data['target']}) comes out as {type_}, and the file says {data['type']}; {DAMAGED}, "
                "or load it with the torch that it was saved with"
            )
        return value

    def _record(self, node: Node, data: Mapping[str, Any]) -> tuple[Any, str]:
        """The recorded value of a call, and its type."""
        if is_mutating(node):
            raise ArtifactError(f"'{data['target']}' writes to its input, which no program does; {DAMAGED}")
        try:
            if not isinstance(node.target, torch._ops.OpOverload) and node.target is not getitem:
                operators.check_operands(node.target, fx.map_arg((node.args, node.kwargs), _recorded))
            value = fake_call(self.scope.mode, node.target, node.args, node.kwargs)
        except Exception as error:  # whatever an operator raises that is given something else than it was
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ArtifactError(
                f"the operator '{data['target']}' does not take what the file gives it ({reason}); {DAMAGED}, or load "
                "it with the torch that it was saved with"
            ) from error
        return self.scope.interned(value), self.scope.type_of(value)


def _recorded(node: Node) -> Any:
    return node.meta["val"]


def _signature(data: Mapping[str, Any]) -> Signature:
    takes = tree_of(data["in"])
    # keywords become text in generated code
    args, kwargs = takes.children()
    if (takes.type, args.type, kwargs.type) != (tuple, tuple, dict) or not all(map(identifier, kwargs.context)):
        raise ArtifactError(f"the program takes {takes}, which is no call; {DAMAGED}")
    mutations = tuple(Mutation(kind, weight_name(target)) for kind, target in data["mutations"])
    names = tuple(map(identifier, data["arguments"]))
    return Signature(takes, tree_of(data["out"]), names, data["outputs"], mutations)


def _check_call(graph: Graph) -> None:
    """Check that the inputs and outputs of a graph are those of its signature.

    Raises:
        ArtifactError: they are not.
    """
    signature: Any = graph.signature  # as the file has it
    counts = (len(graph.inputs), signature.outputs, len(graph.outputs) - signature.outputs)
    expected = (signature.in_spec.num_leaves, signature.out_spec.num_leaves, len(signature.mutations))
    if counts != expected or type(signature.outputs) is not int:
        raise ArtifactError(
            f"the program has {counts} inputs, outputs and writes, and its call {expected} of them; {DAMAGED}"
        )
    inputs = [node.target for node in graph.inputs]
    for mutation, value in zip(signature.mutations, graph.outputs[signature.outputs :], strict=True):
        written = mutation.kind == "weight" or (mutation.kind == "input" and mutation.target in inputs)
        if not written or not isinstance(value, Node):
            raise ArtifactError(f"the program writes {value} to the {mutation.kind} '{mutation.target}'; {DAMAGED}")


def _key(data: Any, named: Mapping[str, Node]) -> Any:
    """JSON as something to look up by, where nodes stand for their recorded values."""
    if isinstance(data, list):
        return tuple(_key(item, named) for item in data)
    if isinstance(data, dict):
        if data.keys() == {"node"}:
            return id(named[data["node"]].meta["val"])
        return tuple((key, _key(item, named)) for key, item in data.items())
    return repr(data)  # 1, 1.0 and True are equal, and not the same argument


def _place_meta(
    path: str, kind: str, file: str = "", line: int = 0, function: str = "", text: str = ""
) -> dict[str, Any]:
    """What nodes of a place have in ``meta``, as tracing would have put it there."""
    # compilers write it into comments of the code that they generate, where another line would be code
    path, kind, file, function, text = (" ".join(each.splitlines()) for each in (path, kind, file, function, text))
    meta: dict[str, Any] = {"nn_module_stack": {path: (path, kind)}} if path or kind else {}
    if file:
        meta["stack_trace"] = f'File "{file}", line {int(line)}, in {function}\n    {text}'
    return meta


def _no_node(name: str) -> Node:
    raise ArtifactError(f"an input is recorded as the node '{name}'; {DAMAGED}")
