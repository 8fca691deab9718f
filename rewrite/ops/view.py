"""Typed views of operator nodes: one class for each operation, whatever its spelling in ATen.

A rule asks ``view(node)`` and reads named fields; it never looks at ``node.args``. Each file beside this one holds the
views of one family and registers a reader for each spelling.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.fx import Node

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import EllipsisType


@dataclass(frozen=True)
class View:
    """What a node computes.

    Attributes:
        node: the node whose value is the result.
    """

    node: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that make up the operation, the result last (a batch norm is a call and its ``getitem``)."""
        if self.node.target is operator.getitem:
            return (self.node.args[0], self.node)  # type: ignore[return-value]
        return (self.node,)

    @property
    def operands(self) -> tuple[Node, ...]:
        """The nodes among the fields, in order."""
        found: list[Node] = []
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name != "node" and isinstance(value, Node):
                found.append(value)
        return tuple(found)


V = TypeVar("V", bound=View)
_readers: dict[Any, Callable[[Node, dict[str, Any]], View | None]] = {}
_tuple_readers: dict[tuple[Any, int | EllipsisType], Callable[[Node, dict[str, Any]], View | None]] = {}


def reads(
    *targets: Any, item: int | EllipsisType | None = None
) -> Callable[[Callable[..., V | None]], Callable[..., V | None]]:
    """Register a reader ``(node, arguments) -> view or None`` for spellings; ``arguments`` are bound by schema name.

    With ``item=0`` the operator returns a tuple and the view is of its ``getitem`` 0; with ``item=...`` of any item.
    """

    def register(reader: Callable[..., V | None]) -> Callable[..., V | None]:
        for target in targets:
            if item is None:
                _readers[target] = reader
            else:
                _tuple_readers[target, item] = reader
        return reader

    return register


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operator call by schema name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def view(node: Any) -> View | None:
    """The view of a node, or None for a node that no view describes (inputs, weights, unknown operators)."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source, index = node.args[0], node.args[1]
        if not isinstance(source, Node) or source.op != "call_function" or not isinstance(index, int):
            return None
        reader = _tuple_readers.get((source.target, index)) or _tuple_readers.get((source.target, ...))
        return None if reader is None else reader(node, arguments(source))
    reader = _readers.get(node.target)
    return None if reader is None else reader(node, arguments(node))


def view_as(node: Any, kind: type[V]) -> V | None:
    """The view of a node if it is of this kind, else None."""
    found = view(node)
    return found if isinstance(found, kind) else None


def value(node: Node) -> torch.Tensor:
    """The recorded fake tensor of a node.

    Raises:
        TypeError: the node's value is not a tensor.
    """
    recorded = node.meta["val"]
    if not isinstance(recorded, torch.Tensor):
        raise TypeError(f"'{node.name}' is not a tensor but {type(recorded).__name__}")
    return recorded


def is_tensor(node: Any) -> bool:
    """Whether the argument is a node with a tensor value."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def same_shape(a: Node, b: Node) -> bool:
    """Whether two tensors certainly have the same shape, for every value of a symbolic size."""
    m, n = value(a).shape, value(b).shape
    return len(m) == len(n) and all(compat.statically_known_true(i == j) for i, j in zip(m, n, strict=True))


def same_type(a: Node, b: Node) -> bool:
    """Whether two tensors certainly have the same shape, dtype and device."""
    m, n = value(a), value(b)
    return m.dtype == n.dtype and m.device == n.device and same_shape(a, b)
