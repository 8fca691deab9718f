"""Fragments as Python source that needs torch alone.

Dtypes that double precision widens are written as bare names (``float32``), so that a caller can bind them to
``float64`` and have a whole side computed so. The weight algebra of rules is computed in float64 and rounded where
something else reads it, as it is when it is folded.
"""

from __future__ import annotations

import builtins
import operator
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from rewrite.evaluate import creates_floats, lift_dtype
from rewrite.printer import WEIGHTS_ONLY
from rewrite.weights import is_algebra

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewrite.fragment import Fragment

NARROW = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.complex32, torch.complex64)
}
"""The dtypes that are bare names in the source."""

RESERVED = frozenset((*NARROW, "N", "aten", "draw", "inf", "nan", "operator", "torch"))
"""Names that mean something in the source, so that no value is called so."""


def size_text(size: Any) -> str:
    """A size, or an expression of the batch size ``N``, the one symbol of a captured graph."""
    return str(size) if isinstance(size, int) else re.sub(r"\b[a-z]+\d+\b", "N", str(size))


def tuple_text(items: Sequence[str]) -> str:
    """A tuple of expressions."""
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def literal(argument: Any) -> str:
    """A constant argument of an operator."""
    if isinstance(argument, torch.dtype):
        name = str(argument).removeprefix("torch.")
        return name if name in NARROW else f"torch.{name}"
    if isinstance(argument, (tuple, list)):
        return f"[{', '.join(map(literal, argument))}]"
    return f"torch.{argument!r}" if isinstance(argument, torch.device) else repr(argument)


class Body:
    """The lines of a function that computes a fragment.

    Args:
        names: what boundary nodes of the graph are called, the arguments of the function.
        algebra: compute the weight algebra of rules in float64; else every operator in its own dtypes.

    Attributes:
        lines: of Python, without indentation.
    """

    def __init__(self, names: Mapping[Node, str], algebra: bool = True):
        self.lines: list[str] = []
        self._algebra = algebra
        self._exact: set[Node] = set()  # values that are float64 until they are rounded
        self._names: dict[Node, str] = dict(names)
        self._taken = {*RESERVED, *names.values()}

    def fragment(self, fragment: Fragment) -> tuple[str, ...]:
        """Write a whole fragment, with the code of what it folds, and return its lines."""
        self._names.update({stand_in: self._names[node] for node, stand_in in fragment.inputs.items()})
        for node in fragment.fx.nodes:
            if node.op == "get_attr":
                self._fold(node, fragment.folds[str(node.target)])
            elif node.op == "call_function":
                self._call(node)
        self.lines.append(f"return {tuple_text([self._read(node) for node in fragment.outputs])}")
        return tuple(self.lines)

    def _fold(self, held: Node, node: Node) -> None:
        """A value that is held by a weight from now on: computed like the node of the graph that it stands for."""
        for part in cone(node, self._names):
            self._call(part)
        self._names[held] = self._unused(held.name)
        self.lines.append(f"{self._names[held]} = {self._read(node)}")

    def _call(self, node: Node) -> None:
        exact = self._algebra and is_algebra(node)
        text = self._operation(node, exact)
        if exact:
            self._exact.add(node)
        self._names[node] = self._unused(node.name)
        self.lines.append(f"{self._names[node]} = {text}{f'  # {WEIGHTS_ONLY}' if is_algebra(node) else ''}")

    def _operation(self, node: Node, exact: bool) -> str:
        args = [self._argument(argument, exact) for argument in node.args]
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        kwargs = {key: self._argument(argument, exact) for key, argument in node.kwargs.items()}
        if creates_floats(node):
            dtype = node.meta["val"].dtype
            kwargs["dtype"] = literal(lift_dtype(dtype) if exact else dtype)
        return f"{_callee(node.target)}({', '.join([*args, *(f'{key}={text}' for key, text in kwargs.items())])})"

    def _argument(self, argument: Any, exact: bool) -> str:
        if isinstance(argument, Node):
            return self._read(argument, exact)
        if isinstance(argument, (tuple, list)):
            return f"[{', '.join(self._argument(item, exact) for item in argument)}]"
        return literal(lift_dtype(argument) if exact and isinstance(argument, torch.dtype) else argument)

    def _read(self, node: Node, exact: bool = False) -> str:
        """A value where it is used: weight algebra takes doubles, everything else takes the recorded dtype."""
        name, value = self._names[node], node.meta.get("val")
        if exact == (node in self._exact) or not isinstance(value, Tensor):
            return name
        wide = lift_dtype(value.dtype)
        return name if wide == value.dtype else f"{name}.to({literal(wide if exact else value.dtype)})"

    def _unused(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def cone(node: Node, known: Mapping[Node, Any]) -> list[Node]:
    """The operators that compute a node from known ones and weights, in order."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top not in known and top not in found and top.op == "call_function":
            found.add(top)
            stack.extend(top.all_input_nodes)
    return sorted(found)


@cache
def _callee(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        text = str(target)
        return text if text.startswith("aten.") else f"torch.ops.{text}"
    name = target.__name__
    home = next((home for home in (operator, builtins, torch) if getattr(home, name, None) is target), None)
    return name if home in (builtins, None) else f"{home.__name__}.{name}"
