"""What no rewrite looks into: such a graph goes to the compiler as Dynamo traced it."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.provenance import location
from rewrite.trace.errors import place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule, Node


class Declined(Exception):
    """A graph that is left as it is. The message is one sentence without its end: what, where, and why."""


def check(module: GraphModule, examples: Sequence[Any]) -> None:
    """Raise :class:`Declined` for a graph, as Dynamo gives it, that cannot be a functional graph over plain tensors.

    Args:
        module: the graph.
        examples: the real arguments.
    """
    for node in module.graph.nodes:
        if node.op == "call_function" and compat.is_nested_graph(node.target):
            raise Declined(f"'{node.target}'{_where(node)} calls graphs of its own, which no rewrite looks into")
        if node.op == "call_function" and _module(node).startswith(("torch._C._functorch", "torch._functorch")):
            raise Declined(f"a transform of torch.func{_where(node)} changes what the operators within mean")
        if node.op == "call_module":
            raise Declined(f"module '{node.target}'{_where(node)} was not traced into")
    for node in module.graph.find_nodes(op="get_attr"):
        if not isinstance(attrgetter(str(node.target))(module), Tensor):
            raise Declined(f"'{node.target}' is no tensor")
    for node, value in zip(module.graph.find_nodes(op="placeholder"), examples, strict=True):
        if isinstance(value, Tensor):
            _check_tensor(str(node.target), value)
        elif not isinstance(value, (int, torch.SymInt)):
            raise Declined(f"argument '{node.target}' is a {type(value).__name__}")
    devices = {value.device for value in examples if isinstance(value, Tensor) and value.dim() > 0}
    if len(devices) > 1:
        raise Declined(f"its tensors are on several devices ({', '.join(sorted(map(str, devices)))})")


def _check_tensor(name: str, value: Tensor) -> None:
    if isinstance(value, compat.FakeTensor):
        raise Declined(f"argument '{name}' has no values: the graph is compiled ahead of its first call")
    if type(value) not in (Tensor, nn.Parameter):
        raise Declined(f"argument '{name}' is a {type(value).__name__}, which no rule understands")
    if value.is_nested or value.layout is not torch.strided or value.is_quantized:
        raise Declined(f"argument '{name}' is not a dense tensor")


def _module(node: Node) -> str:
    return str(getattr(node.target, "__module__", None))


def _where(node: Node) -> str:
    return place(location(node))
