"""Which outputs of a graph may share memory with inputs, weights and each other, read from operator schemas.

A caller sees aliasing: writing to an output that is a view of an input changes the input. So a rewrite has to keep it,
and comparing :func:`alias_classes` before and after tells. The analysis only walks back from the outputs.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

if TYPE_CHECKING:
    from rewrite.graph import Graph

aten = torch.ops.aten

# These return their argument or a view of it in some cases, and their schemas do not say so.
_UNDECLARED = frozenset({
    aten.type_as.default, aten.broadcast_tensors.default, aten.einsum.default, aten.meshgrid.default,
    aten.meshgrid.indexing, aten.atleast_1d.default, aten.atleast_2d.default, aten.atleast_3d.default,
    aten.atleast_1d.Sequence, aten.atleast_2d.Sequence, aten.atleast_3d.Sequence,
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
})  # fmt: skip

# These return their argument only where nothing is to be converted.
_CONVERSIONS = frozenset({
    aten.to.other, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.type_as.default,
})  # fmt: skip


def alias_classes(graph: Graph) -> tuple[frozenset[str], ...]:
    """The groups of flat outputs, inputs and weights that may share memory, each with at least one output.

    Members are ``"output 0"`` (flat outputs of the user), ``"input x"`` (by placeholder) and ``"weight l.bias"``.
    Groups of one are left out. Operators that may return a view (``reshape``, ``contiguous``) count as if they did, so
    the answer does not depend on strides. The order is fixed.
    """
    names: dict[Node, list[str]] = {}
    # values that are written back are copied, so what they share is not seen
    for i, value in enumerate(graph.outputs[: graph.signature.outputs]):
        if not isinstance(value, Node) or not isinstance(value.meta.get("val"), Tensor):
            continue
        for root in roots(value):
            if root not in names:
                names[root] = [f"{'input' if root.op == 'placeholder' else 'weight'} {root.target}"] * (
                    root.op in ("placeholder", "get_attr")
                )
            names[root].append(f"output {i}")
    return tuple(sorted(_merged(names.values()), key=sorted))


def roots(node: Node) -> list[Node]:
    """The nodes whose memory ``node`` may be: inputs, weights, and operators that make fresh tensors."""
    found: dict[Node, None] = {}
    seen = {node}
    stack = [node]
    while stack:
        top = stack.pop()
        sources = alias_sources(top)
        if not sources or top.target in _UNDECLARED:
            found[_first_reader(top)] = None
        for source in sources:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return list(found)


def alias_sources(node: Node) -> list[Node]:
    """The arguments that a node's value may be a view of; empty for inputs, weights and fresh values."""
    if node.op != "call_function":
        return []
    if node.target is operator.getitem:
        # the results of an operator lie apart, unless they are views of its arguments
        source: Any = node.args[0]
        return [source] if alias_sources(source) else []
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    positions = _aliased(node.target)
    if not positions:
        return []
    schema = node.target._schema
    sources: list[Node] = []
    for i, argument in enumerate(schema.arguments):
        if argument.name in positions:
            _collect(node.args[i] if i < len(node.args) else node.kwargs.get(argument.name), sources)
    if node.target in _CONVERSIONS:
        sources = [source for source in sources if _same_kind(source, node)]
    return sources


def _first_reader(node: Node) -> Node:
    """For a result of an operator with several, the first node that reads the same one; any other node as it is."""
    if node.target is not operator.getitem:
        return node
    source, index = node.args
    assert isinstance(source, Node)
    return next(user for user in source.users if user.target is operator.getitem and user.args[1] == index)


def _collect(argument: Any, sources: list[Node]) -> None:
    if isinstance(argument, Node):
        sources.append(argument)
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            _collect(item, sources)


@cache
def _aliased(target: torch._ops.OpOverload) -> frozenset[str]:
    """The names of the arguments that a result may alias, by the schema."""
    schema = target._schema
    if target in _UNDECLARED:
        return frozenset({schema.arguments[1 if target is aten.einsum.default else 0].name})
    returned: set[str] = set()
    for result in schema.returns:
        if result.alias_info is not None:
            returned |= result.alias_info.before_set | result.alias_info.after_set
    return frozenset(
        argument.name
        for argument in schema.arguments
        if argument.alias_info is not None and _meet(argument.alias_info, returned)
    )


def _meet(info: Any, returned: set[str]) -> bool:
    # '*' stands for the items of a list: `split(Tensor(a -> *) self, ...) -> Tensor(a)[]`, whose list has no alias_info
    return "*" in info.after_set or bool((info.before_set | info.after_set) & returned)


def _same_kind(source: Node, node: Node) -> bool:
    a, b = source.meta.get("val"), node.meta.get("val")
    return not (isinstance(a, Tensor) and isinstance(b, Tensor)) or (a.dtype == b.dtype and a.device == b.device)


def _merged(groups: Any) -> list[frozenset[str]]:
    """Groups that share a member become one; groups of one member are dropped."""
    merged: list[set[str]] = []
    for group in map(set, groups):
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group]
        merged.append(group.union(*touching))
    return [frozenset(group) for group in merged if len(group) > 1]
