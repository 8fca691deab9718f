"""Formulas as text, and back without evaluating what the text says."""

from __future__ import annotations

import ast
import operator
from typing import TYPE_CHECKING, Any

import sympy
from sympy.codegen.cfunctions import log2

from rewrite.arithmetic import symbol

if TYPE_CHECKING:
    from collections.abc import Callable

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_FUNCTIONS = {
    "Max": sympy.Max, "Min": sympy.Min, "Mod": sympy.Mod, "ceiling": sympy.ceiling, "floor": sympy.floor, "log2": log2,
}  # fmt: skip
_HIGHEST = 16
"""No size is taken to a higher power."""


def parsed(text: str) -> sympy.Expr:
    """The expression that ``str`` gave of sums, products, powers and the like of sizes.

    Raises:
        ValueError: the text is no such expression.
    """
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no formula of sizes") from error


def _read(node: ast.expr) -> sympy.Expr:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return sympy.sympify(number)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)) if 0 <= power <= _HIGHEST:
            return _read(left) ** power
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_read(left), _read(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_read, arguments))
    raise ValueError(f"{ast.unparse(node)!r} is no formula of sizes")
