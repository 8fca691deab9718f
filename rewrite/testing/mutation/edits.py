"""The ways in which one place of a function is changed: an operator, a constant, a condition, a term, a guard.

An edit keeps the program well formed and is small enough to be read in a line. What only people read is left alone:
docstrings, formatted text, messages of exceptions, the reason and the remedy of a refusal, annotations.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PRECONDITION = "precondition"
"""The kind of edits that take away a reason for refusal."""

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPPOSED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_COMMUTES = (ast.Add, ast.Mult, ast.BitOr, ast.BitAnd)
_OPERATORS = {"add": "sub", "sub": "add", "mul": "div", "div": "mul"}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_COMMUTING_CALLS = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "min", "max"})
_FIXED_ORDER = frozenset({"Refusal", "Miss", "isinstance", "issubclass", "getattr", "hasattr", "range", "zip", "map"})
_CONTEXT = frozenset({"self", "cls", "g", "graph"})
_REFUSING = ("Refusal", "Miss")


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one node.

    Attributes:
        kind: what sort of change.
        change: what it does, in a line: ``"a < b" becomes "a <= b"``.
        new: what takes the place of the node; None removes a statement.
    """

    kind: str
    change: str
    new: ast.AST | None


def text(node: ast.AST) -> str:
    """A node as source in one line."""
    return " ".join(ast.unparse(node).split())


def _becomes(kind: str, old: ast.AST, new: ast.AST) -> Edit:
    return Edit(kind, f"{text(old)} -> {text(new)}", new)


def edits(node: ast.AST, refusing: bool) -> Iterator[Edit]:
    """Every change of this node itself, not of what is below it.

    Args:
        node: an expression or statement inside a function.
        refusing: whether that function's result says why a rule does not apply.
    """
    match node:
        case ast.If():
            yield from _if(node, refusing)
        case ast.While():
            yield from _negated(node)
        case ast.comprehension():
            yield from _filters(node)
        case ast.IfExp():
            yield Edit("branch", f"{text(node)} -> {text(node.body)}", node.body)
            yield Edit("branch", f"{text(node)} -> {text(node.orelse)}", node.orelse)
        case ast.BoolOp():
            yield from _bool(node)
        case ast.Compare():
            yield from _compare(node)
        case ast.BinOp():
            yield from _arithmetic(node)
        case ast.UnaryOp():
            yield from _unary(node)
        case ast.Constant():
            yield from _constant(node)
        case ast.Call():
            yield from _call(node)
        case ast.Tuple() | ast.List() | ast.Set():
            yield from _elements(node)
        case ast.Break():
            yield Edit("branch", "break -> continue", ast.Continue())
        case ast.Continue():
            yield Edit("branch", "continue -> break", ast.Break())
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.AugAssign() | ast.Delete():
            yield Edit("statement", f"removed: {text(node)}", None)


def results(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Edit]:
    """A function that answers always the same: no reason for refusal, nothing found, yes, no."""
    if isinstance(function.body[-1], ast.Raise):
        return  # for others to define
    answers: list[bool | None] = [None] if _may_be_none(function.returns) else []
    if isinstance(function.returns, ast.Name) and function.returns.id == "bool":
        answers = [True, False]
    only = function.body[ast.get_docstring(function) is not None :]
    for answer in answers:
        if len(only) == 1 and isinstance(only[0], ast.Return) and _is_constant(only[0].value, answer):
            continue
        new = copy.deepcopy(function)
        new.body = [ast.Return(ast.Constant(answer))]
        kind = PRECONDITION if is_refusing(function) and answer is None else "result"
        yield Edit(kind, f"{function.name} returns {answer}", new)


def _may_be_none(annotation: ast.AST | None) -> bool:
    match annotation:
        case ast.BinOp(left=left, right=right):
            return any(_is_none(part) or _may_be_none(part) for part in (left, right))
    return False


def is_refusing(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's result says why a rule does not apply."""
    return function.returns is not None and "Refusal" in ast.unparse(function.returns)


# -- statements -------------------------------------------------------------------------------------------------------


def _if(node: ast.If, refusing: bool) -> Iterator[Edit]:
    kind = "statement"
    if isinstance(node.body[-1], (ast.Return, ast.Continue, ast.Break, ast.Raise)):
        kind = "guard"
    if _refuses(node.body, refusing):
        kind = PRECONDITION
    if node.orelse:
        instead: ast.AST = node.orelse[0] if len(node.orelse) == 1 else ast.If(ast.Constant(True), node.orelse, [])
        yield Edit(kind, f"never: if {text(node.test)}", instead)
    else:
        yield Edit(kind, f"removed: if {text(node.test)}", None)
    yield from _negated(node)


def _has_opposite(test: ast.expr) -> bool:
    """Whether an edit of the condition's own negates it."""
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and isinstance(test.ops[0], _OPPOSED)
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _negated(node: ast.If | ast.While) -> Iterator[Edit]:
    if _has_opposite(node.test):
        return
    new = copy.copy(node)
    new.test = ast.UnaryOp(ast.Not(), node.test)
    word = "if" if isinstance(node, ast.If) else "while"
    yield Edit("negation", f"{word} {text(node.test)} -> {word} not ({text(node.test)})", new)


def _refuses(body: list[ast.stmt], refusing: bool) -> bool:
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Call) and _is_refusal(node):
            return True
        if refusing and isinstance(node, ast.Return) and not _is_none(node.value):
            return True
    return False


def _is_refusal(call: ast.Call) -> bool:
    name = _name(call.func)
    return name in _REFUSING or "refusal" in name.lower()


def _is_none(node: ast.AST | None) -> bool:
    return _is_constant(node, None)


def _is_constant(node: ast.AST | None, value: bool | None) -> bool:
    return value is None if node is None else isinstance(node, ast.Constant) and node.value is value


def _name(node: ast.AST) -> str:
    """The last part of a dotted name, or ''."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _filters(node: ast.comprehension) -> Iterator[Edit]:
    for i, test in enumerate(node.ifs):
        without = copy.copy(node)
        without.ifs = [other for j, other in enumerate(node.ifs) if j != i]
        yield Edit("guard", f"removed from the comprehension: if {text(test)}", without)
        if _has_opposite(test):
            continue
        opposite = copy.copy(node)
        opposite.ifs = [ast.UnaryOp(ast.Not(), other) if j == i else other for j, other in enumerate(node.ifs)]
        yield Edit("negation", f"in the comprehension: if {text(test)} -> if not ({text(test)})", opposite)


# -- expressions ------------------------------------------------------------------------------------------------------


def _bool(node: ast.BoolOp) -> Iterator[Edit]:
    other = ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    yield _becomes("logic", node, other)
    word = "and" if isinstance(node.op, ast.And) else "or"
    for i, dropped in enumerate(node.values):
        rest = [value for j, value in enumerate(node.values) if j != i]
        refuses = any(isinstance(part, ast.Call) and _is_refusal(part) for part in ast.walk(dropped))
        kind = PRECONDITION if refuses and word == "or" else "term"
        new = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        yield Edit(kind, f"{text(node)} without {text(dropped)}", new)


def _compare(node: ast.Compare) -> Iterator[Edit]:
    for i, operator in enumerate(node.ops):
        new = copy.copy(node)
        new.ops = [_COMPARISONS[type(operator)]() if j == i else other for j, other in enumerate(node.ops)]
        yield _becomes("comparison", node, new)
        among = node.comparators[i]
        if isinstance(operator, (ast.In, ast.NotIn)) and isinstance(among, (ast.Tuple, ast.List, ast.Set)):
            for k, element in enumerate(among.elts if len(among.elts) > 1 else ()):
                fewer = copy.copy(node)
                fewer.comparators = [_without(among, k) if j == i else other
                                     for j, other in enumerate(node.comparators)]  # fmt: skip
                yield Edit("term", f"{text(node)} without {text(element)}", fewer)


def _arithmetic(node: ast.BinOp) -> Iterator[Edit]:
    if any(_is_text(operand) for operand in (node.left, node.right)):
        return
    other = _ARITHMETIC.get(type(node.op))
    if other is not None:
        yield _becomes("arithmetic", node, ast.BinOp(node.left, other(), node.right))
    yield _becomes("term", node, node.left)
    if isinstance(node.op, _COMMUTES):
        yield _becomes("term", node, node.right)


def _is_text(node: ast.AST) -> bool:
    """Whether an expression is a string for people."""
    match node:
        case ast.JoinedStr():
            return True
        case ast.Constant(value=value):
            return isinstance(value, str)
        case ast.BinOp(left=left, right=right):
            return _is_text(left) or _is_text(right)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_text(body) or _is_text(orelse)
    return False


def _unary(node: ast.UnaryOp) -> Iterator[Edit]:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            yield from (_becomes("constant", node, _number(-number + step)) for step in (1, -1))
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            kind = "negation" if isinstance(node.op, ast.Not) else "arithmetic"
            yield _becomes(kind, node, node.operand)


def _number(number: int) -> ast.expr:
    return ast.Constant(number) if number >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-number))


def _constant(node: ast.Constant) -> Iterator[Edit]:
    if isinstance(node.value, bool):
        yield _becomes("constant", node, ast.Constant(not node.value))
    elif isinstance(node.value, int):
        yield from (_becomes("constant", node, _number(node.value + step)) for step in (1, -1))
    elif isinstance(node.value, float):
        yield _becomes("constant", node, ast.Constant(node.value + 1.0))


def _elements(node: ast.Tuple | ast.List | ast.Set) -> Iterator[Edit]:
    """Collections without what is spliced into them; other elements are seldom free to go."""
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return
    for i, element in enumerate(node.elts):
        if isinstance(element, ast.Starred):
            yield Edit("term", f"{text(node)} without {text(element)}", _without(node, i))


def _without(node: ast.Tuple | ast.List | ast.Set, dropped: int) -> ast.Tuple | ast.List | ast.Set:
    new = copy.copy(node)
    new.elts = [element for i, element in enumerate(node.elts) if i != dropped]
    return new


# -- calls ------------------------------------------------------------------------------------------------------------


def _call(node: ast.Call) -> Iterator[Edit]:
    name = _name(node.func)
    if name in _FUNCTIONS and isinstance(node.func, ast.Name):
        yield _becomes("operator", node, _calling(node, [*node.args], ast.Name(_FUNCTIONS[name], ast.Load())))
    if name == "isinstance" and len(node.args) == 2 and isinstance(node.args[1], ast.Tuple):
        kinds = node.args[1]
        for i, kind in enumerate(kinds.elts):
            yield Edit("term", f"{text(node)} without {text(kind)}", _calling(node, [node.args[0], _without(kinds, i)]))
    if _operator(node):
        yield from _built(node)
    else:
        yield from _swapped(node, 0)


def _calling(node: ast.Call, args: list[ast.expr], func: ast.expr | None = None) -> ast.Call:
    return ast.Call(func or node.func, args, node.keywords)


def _operator(node: ast.Call) -> str:
    """The operator that a call such as ``g(aten.add.Tensor, x, y)`` builds, or ''."""
    if not isinstance(node.func, ast.Name) or not node.args:
        return ""
    match node.args[0]:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="aten"), attr=name)):
            return name
        case ast.Attribute(value=ast.Attribute(value=ast.Attribute(attr="aten"), attr=name)):
            return name
    return ""


def _built(node: ast.Call) -> Iterator[Edit]:
    """Another operator, one of its operands alone, operands swapped."""
    name = _operator(node)
    operands = node.args[1:]
    if name in _OPERATORS:
        target = copy.deepcopy(node.args[0])
        assert isinstance(target, ast.Attribute)
        assert isinstance(target.value, ast.Attribute)
        target.value.attr = _OPERATORS[name]
        yield _becomes("operator", node, _calling(node, [target, *operands]))
    alone = operands if name in _COMMUTING_CALLS else operands[:1]
    for operand in alone:
        if not isinstance(operand, ast.Starred):
            yield _becomes("term", node, operand)
    if name not in _COMMUTING_CALLS:
        yield from _swapped(node, 1)


def _swapped(node: ast.Call, first: int) -> Iterator[Edit]:
    """Two neighbouring arguments in each other's place, where both could stand in either."""
    name = _name(node.func)
    if name in _FIXED_ORDER or name.lstrip("_").startswith("same") or (name in _COMMUTING_CALLS and not first):
        return
    for i in range(first, len(node.args) - 1):
        a, b = node.args[i : i + 2]
        if _shape(a) and _shape(a) == _shape(b) and text(a) != text(b):
            args = [*node.args[:i], b, a, *node.args[i + 2 :]]
            yield _becomes("arguments", node, _calling(node, args))


def _shape(node: ast.AST) -> str:
    """What sort of value an argument is, as far as its spelling tells; '' where it has one place only."""
    if isinstance(node, (ast.Starred, ast.Lambda)) or _name(node) in _CONTEXT:
        return ""
    if isinstance(node, (ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.GeneratorExp)):
        return type(node).__name__
    return "class" if _name(node)[:1].isupper() else "value"
