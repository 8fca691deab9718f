"""Patterns over operator views, with named captures.

    pattern = Op(BatchNorm, "norm", input=Op(Convolution, "conv", input=Var("x")))

An :class:`Op` matches a node whose view is of the given class (or one of several) and whose named fields match; fields
that are not named may be anything. A :class:`Var` captures a node; the same name twice must be the same node.
:class:`SumOf` matches the terms of a whole add-tree in any order, :class:`ProductOf` two factors, :class:`Call` an
operator without a view. A mismatch is a value: it says how far the match got and why it ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from rewrite.between import between
from rewrite.errors import RuleError
from rewrite.names import nearest
from rewrite.ops import Product, Sum, View, arguments, is_tensor, view
from rewrite.printer import target_text
from rewrite.provenance import called
from rewrite.rule import Match, Miss, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rewrite.graph import Graph
    from rewrite.rule import Rule


@dataclass
class _State:
    graph: Graph
    captures: dict[str, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    failure: Refusal | None = None
    reached: tuple[Node, ...] = ()

    def fail(self, reason: str, culprit: Node | None, remedy: str) -> bool:
        """Remember the failure that came furthest."""
        if self.failure is None or len(self.nodes) >= len(self.reached):
            self.failure, self.reached = Refusal(reason, culprit, remedy), tuple(self.nodes)
        return False

    def mark(self) -> tuple[dict[str, Any], int]:
        return dict(self.captures), len(self.nodes)

    def back_to(self, mark: tuple[dict[str, Any], int]) -> None:
        self.captures, count = dict(mark[0]), mark[1]
        del self.nodes[count:]


class Pattern:
    """Base of all patterns. ``str(pattern)`` says in words what it asks for at its anchor."""

    def search(self, rule: Rule, graph: Graph, node: Node) -> Match | Miss | None:
        """The match anchored at a node; a miss where at least the anchor matched; None where nothing did."""
        state = _State(graph)
        if self._match(node, state):
            ordered = sorted(set(state.nodes))
            return Match(rule, tuple(ordered), (node,), state.captures)
        if not state.reached or state.failure is None:
            return None
        return Miss(rule.name, node, state.failure, state.reached)

    def _match(self, value: Any, state: _State) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class Var(Pattern):
    """Any value, captured by name. ``where`` restricts it; ``what`` says in words what it asks for."""

    name: str
    where: Callable[[Any], bool] | None = None
    what: str = ""

    def _match(self, value: Any, state: _State) -> bool:
        culprit = value if isinstance(value, Node) else None
        if self.where is not None and not self.where(value):
            return state.fail(f"expected {self}", culprit, f"pass {self}")
        if self.name in state.captures and not _same(state.captures[self.name], value):
            remedy = f"use one value in both places of '{self.name}'"
            return state.fail(f"'{self.name}' would have to be two different values", culprit, remedy)
        state.captures[self.name] = value
        return True

    def __str__(self) -> str:
        return self.what or self.name


class Op(Pattern):
    """A node with a view of one of the given classes, captured as that view under ``name``.

    Raises:
        RuleError: one of the classes has no such field.
    """

    def __init__(self, kind: type[View] | Sequence[type[View]], name: str = "", /, **fields: Any):
        self.kinds: tuple[type[View], ...] = (kind,) if isinstance(kind, type) else tuple(kind)
        self.name = name
        self.fields = fields
        for cls in self.kinds:
            known = {name for name in dir(cls) if not name.startswith("_")} | set(cls.__dataclass_fields__)
            _check_fields(cls.__name__, fields, known)

    def _match(self, value: Any, state: _State) -> bool:
        found = view(value)
        if not isinstance(found, self.kinds):
            return _unlike(str(self), value, lambda node: isinstance(view(node), self.kinds), state)
        if self.name in state.captures and state.captures[self.name] != found:
            return _two_nodes(self.name, found.node, state)
        state.nodes.extend(found.nodes)
        state.captures.update({self.name: found} if self.name else {})
        mark = state.mark()
        if _match_fields(self.fields, lambda field: getattr(found, field), found.node, state):
            return True
        if isinstance(found, Product) and not found.divided and all(map(is_tensor, (found.left, found.right))):
            state.back_to(mark)
            swapped = Product(found.node, found.right, found.left)
            if _match_fields(self.fields, lambda field: getattr(swapped, field), found.node, state):
                state.fail("the factors stand the other way round", found.node, f"swap those of {called(found.node)}")
        return False

    def __str__(self) -> str:
        return " or ".join(kind.__name__ for kind in self.kinds)


def _unlike(wanted: str, value: Any, fits: Callable[[Node], bool], state: _State) -> bool:
    """Fail where another operator was asked for; one that stands right before it is told to move."""
    if not isinstance(value, Node):
        return state.fail(f"expected {wanted}, found {value}", None, f"pass the result of {wanted}")
    found = between(state.graph, value, fits)
    remedy = f"take {called(found[1][0])} out from between" if found else f"put {wanted} in its place"
    return state.fail(f"expected {wanted}, found {_called(value)}", value, remedy)


def _two_nodes(name: str, node: Node, state: _State) -> bool:
    remedy = f"compute both places of '{name}' by one call"
    return state.fail(f"'{name}' would have to be two different nodes", node, remedy)


def _same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, Node) or isinstance(b, Node) else bool(a == b)


def _check_fields(kind: str, fields: Iterable[str], known: Iterable[str]) -> None:
    for name in fields:
        if name not in known:
            raise RuleError(f"{kind} has no field '{name}'{nearest(name, known)}")


def _called(node: Node) -> str:
    return {"placeholder": "an input of the model", "get_attr": "a weight"}.get(node.op, target_text(node))


class Call(Pattern):
    """A call of one ATen overload, for operators that have no view; arguments are matched by schema name.

    The node is captured under ``name``.

    Raises:
        RuleError: the schema has no such argument.
    """

    def __init__(self, target: torch._ops.OpOverload, name: str = "", /, **fields: Any):
        self.target = target
        self.name = name
        self.fields = fields
        _check_fields(str(target), fields, {argument.name for argument in target._schema.arguments})

    def _match(self, value: Any, state: _State) -> bool:
        if not isinstance(value, Node) or value.target is not self.target:
            return _unlike(str(self), value, lambda node: node.target is self.target, state)
        if self.name in state.captures and state.captures[self.name] is not value:
            return _two_nodes(self.name, value, state)
        state.nodes.append(value)
        state.captures.update({self.name: value} if self.name else {})
        return _match_fields(self.fields, arguments(value).__getitem__, value, state)

    def __str__(self) -> str:
        return str(self.target)


def _match_fields(fields: dict[str, Any], read: Callable[[str], Any], node: Node, state: _State) -> bool:
    """Whether every named field matches its pattern or equals its value."""
    for name, wanted in fields.items():
        actual = read(name)
        if isinstance(wanted, Pattern):
            if not wanted._match(actual, state):
                return False
        elif actual != wanted:
            return state.fail(f"{name} is {actual}, not {wanted}", node, f"set {name}={wanted}")
    return True


class Either(Pattern):
    """The first of several patterns that matches."""

    def __init__(self, *patterns: Pattern):
        self.patterns = patterns

    def _match(self, value: Any, state: _State) -> bool:
        mark = state.mark()
        for pattern in self.patterns:
            if pattern._match(value, state):
                return True
            state.back_to(mark)
        return False

    def __str__(self) -> str:
        return " or ".join(map(str, self.patterns))


def _patterns(what: str, parts: tuple[Any, ...], instead: str) -> tuple[Pattern, ...]:
    for part in parts:
        if not isinstance(part, Pattern):
            raise RuleError(f"{what} takes patterns, such as Var('x'), not {part!r}; for a number write {instead}")
    return parts


class SumOf(Pattern):
    """An add-tree whose terms match the given patterns, in any order, each with coefficient one.

    Without ``rest`` there are no further terms; with it the others are captured under that name as
    :class:`~rewrite.ops.Term` values.
    """

    def __init__(self, *patterns: Pattern, rest: str = ""):
        self.patterns = _patterns("SumOf", patterns, "Call(aten.add.Tensor, self=..., other=3.0)")
        self.rest = rest

    def _match(self, value: Any, state: _State) -> bool:
        found = view(value)
        if not isinstance(found, Sum):
            return state.fail("expected a sum", value if isinstance(value, Node) else None, "put a sum in its place")
        terms, inner = found.flatten()
        state.nodes.extend(inner)
        count = len(self.patterns)
        if len(terms) < count or (len(terms) > count and not self.rest):
            return state.fail(f"the sum has {len(terms)} terms, not {count}", found.node, f"add up {count} terms")
        return self._assign(list(terms), 0, state)

    def _assign(self, terms: list[Any], index: int, state: _State) -> bool:
        if index == len(self.patterns):
            if self.rest:
                state.captures[self.rest] = tuple(terms)
            return True
        mark = state.mark()
        for i, term in enumerate(terms):
            if term.node is None or term.coefficient != 1:
                shown = term.coefficient if term.node is None else f"{term.coefficient} * {term.node.name}"
                remedy = "add a tensor without a factor"
                state.fail(f"the term {shown} is not a value with coefficient one", term.node, remedy)
                continue
            rest = terms[:i] + terms[i + 1 :]
            if self.patterns[index]._match(term.node, state) and self._assign(rest, index + 1, state):
                return True
            state.back_to(mark)
        return False

    def __str__(self) -> str:
        return "a sum"


class ProductOf(Pattern):
    """A product of two factors that match the given patterns, in either order."""

    def __init__(self, first: Pattern, second: Pattern):
        self.first, self.second = _patterns("ProductOf", (first, second), "Op(Product, left=..., right=3.0)")

    def _match(self, value: Any, state: _State) -> bool:
        found = view(value)
        if not isinstance(found, Product) or found.divided:
            remedy = "multiply by the reciprocal" if isinstance(found, Product) else "put a product in its place"
            return state.fail("expected a product", value if isinstance(value, Node) else None, remedy)
        state.nodes.append(found.node)
        mark = state.mark()
        for left, right in ((found.left, found.right), (found.right, found.left)):
            if self.first._match(left, state) and self.second._match(right, state):
                return True
            state.back_to(mark)
        return False

    def __str__(self) -> str:
        return "a product"
