"""Arithmetic on sizes, for numbers and for ``sympy`` expressions alike, so that a formula is written once."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import sympy
from sympy.codegen.cfunctions import log2 as _log2

Number: TypeAlias = int | sympy.Expr
"""An integer, or an expression of integers."""


def symbol(name: str, **assumptions: bool) -> sympy.Symbol:
    """A size without a number: a positive integer."""
    return sympy.Symbol(name, positive=True, integer=True, **assumptions)


def largest(*numbers: Number) -> Number:
    """The largest of sizes."""
    if all(isinstance(number, int) for number in numbers):
        return max(numbers)
    # sympy compares by its assumptions, which takes a millisecond; multiples of one product take none
    most: dict[Any, Any] = {}
    others: list[Number] = []
    for number in numbers:
        factor, rest = sympy.sympify(number).as_coeff_Mul()
        if rest.is_integer and rest.is_positive:
            most[rest] = max(factor, most.get(rest, factor))
        else:
            others.append(number)
    one = most.get(sympy.S.One)
    if one is not None and any(factor >= one for rest, factor in most.items() if rest != 1):
        del most[sympy.S.One]
    return sympy.Max(*others, *(factor * rest for rest, factor in most.items()))


def ceil_div(number: Number, part: Number) -> Number:
    """The quotient, rounded up."""
    if isinstance(number, int) and isinstance(part, int):
        return -(-number // part)
    return sympy.ceiling(sympy.sympify(number) / part)


def log2(number: Number) -> Any:
    """The logarithm to base 2: a float, or an expression."""
    return math.log2(number) if isinstance(number, int) else _log2(number)


def rounded(number: Any) -> Number:
    """The nearest integer, upwards from the middle."""
    if isinstance(number, sympy.Expr):
        return sympy.floor(number + sympy.Rational(1, 2))
    return math.floor(number + 0.5)
