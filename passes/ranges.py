"""The interval that the values of a node lie in, by exact interval arithmetic over the operators before it.

A range holds in real arithmetic for every value that is not NaN; rounding may leave it by as much as it errs anyway.
Endpoints are rational SymPy numbers or infinities, never expressions, which cost without bound to compare: what a
program gives as floats is taken as the rational number that it is, and irrational images such as ``sigmoid(1/2)`` are
rounded outward, so that a range may be wider than the values, never narrower, and of one number only where that number
is exact. After Moore, Interval Analysis, 1966.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import sympy
import torch
from sympy import Interval, Rational, oo

from passes import reductions
from rewrite.ops import (
    AveragePool,
    Clamp,
    Concatenation,
    Copy,
    Expand,
    Extreme,
    Fill,
    MaxPool,
    Negation,
    Pad,
    Permute,
    Piece,
    Product,
    Reduction,
    Reshape,
    Roll,
    Slice,
    Softmax,
    Sum,
    Term,
    activation,
    is_tensor,
    value,
    view,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Node

    from rewrite.ops import Activation, View

aten = torch.ops.aten

EVERYTHING = Interval(-oo, oo)

_DEPTH = 8
"""How many operators are looked through; ranges from further away are seldom of interest."""

_BITS = 4096
"""Longer endpoints, as of powers of powers, are rounded outward to floats."""

_ULPS = 16
"""So many units in the last place a function of ``math`` is taken to err at most; they err by one or two."""


@dataclass(frozen=True)
class Range:
    """Where values lie.

    Attributes:
        interval: a closed ``sympy.Interval``, or a ``FiniteSet`` of one number.
        nodes: the operators that this follows from; none where nothing is known.
    """

    interval: Any = EVERYTHING
    nodes: frozenset[Node] = frozenset()

    @property
    def low(self) -> Any:
        """The lower end, perhaps minus infinity."""
        return self.interval.inf

    @property
    def high(self) -> Any:
        """The upper end, perhaps infinity."""
        return self.interval.sup

    def within(self, interval: Any) -> bool:
        """Whether the range certainly lies in an interval."""
        return bool(self.low >= interval.inf and self.high <= interval.sup)


def exact(number: float) -> Any:
    """A float as the rational number, or infinity, that it is."""
    if number in (float("inf"), float("-inf")):
        return oo if number > 0 else -oo
    return Rational(*float(number).as_integer_ratio())


def between(low: Any, high: Any) -> Any:
    """The closed interval between two numbers."""
    low, high = sympy.sympify(low), sympy.sympify(high)
    return Interval(exact(_down(low)) if _is_long(low) else low, exact(_up(high)) if _is_long(high) else high)


def _is_long(end: Any) -> bool:
    return end.is_finite and max(end.p.bit_length(), end.q.bit_length()) > _BITS  # type: ignore[no-any-return]


def _down(end: Any) -> float:
    """The largest float that is not above a number, perhaps minus infinity."""
    if end in (oo, -oo):
        return math.inf if end == oo else -math.inf
    number = Fraction(end.p, end.q)
    try:
        near = float(number)
    except OverflowError:
        return sys.float_info.max if number > 0 else -math.inf
    return near if Fraction(near) <= number else math.nextafter(near, -math.inf)


def _up(end: Any) -> float:
    """The smallest float that is not below a number, perhaps infinity."""
    return -_down(-end)


def point(number: float) -> Any:
    """The interval of one number; everything where it is not finite, for infinity is no number here."""
    return between(exact(number), exact(number)) if math.isfinite(number) else EVERYTHING


def value_range(node: Node, depth: int = _DEPTH) -> Range:
    """The range of a floating tensor, as far as the operators before it tell."""
    if depth == 0 or not is_tensor(node) or not value(node).dtype.is_floating_point:
        return Range()
    found = view(node)
    own = found.nodes if found is not None else (node,)
    act = activation(node)
    if isinstance(found, Clamp) and found.low < math.inf and found.high > -math.inf:
        below = value_range(found.input, depth - 1)
        bounds = between(exact(found.low), exact(found.high))
        return _image(own, (below,), lambda r: _clip(r, bounds))
    if act is not None:
        return _image(own, (value_range(act.input, depth - 1),), lambda r: _activated(act, r))
    if node.target is aten.sqrt.default:
        return Range(between(0, oo), frozenset(own))
    return Range() if found is None else _of_view(found, depth - 1)


def _image(nodes: tuple[Node, ...], ranges: tuple[Range, ...], make: Callable[..., Any]) -> Range:
    """What an operator makes of ranges, and which of them it needs for that."""
    alone = make(*(EVERYTHING for _ in ranges))
    interval = make(*(r.interval for r in ranges))
    if interval == EVERYTHING:
        return Range()
    needed = () if interval == alone else ranges
    return Range(interval, frozenset(nodes).union(*(r.nodes for r in needed)))


def _of_view(found: View, depth: int) -> Range:
    def below(node: Node) -> Range:
        return value_range(node, depth)

    match found:
        case Softmax(logarithm=logarithm):
            high = 0 if logarithm else 1
            unit = reductions.is_unit(found.input, [found.dim])
            return Range(between(high if unit else -oo if logarithm else 0, high), frozenset(found.nodes))
        case Fill(number=number):
            return _image(found.nodes, (Range(point(number)),), lambda r: r)
        case Reshape() | Permute() | Copy() | Expand() | Slice() | Piece() | Roll():
            return _image(found.nodes, (below(found.input),), lambda r: r)
        case Concatenation(inputs=parts):
            return _image(found.nodes, tuple(map(below, parts)), _hull)
        case Pad(mode=mode, fill=fill):
            return _image(
                found.nodes, (below(found.input),), lambda r: _hull(r, point(fill)) if mode == "constant" else r
            )
        case MaxPool(dilation=dilation):
            if any(step > 1 for step in dilation):
                return Range()  # a window may hold nothing but padding
            return _image(found.nodes, (below(found.input),), lambda r: r)
        case AveragePool():
            return _image(found.nodes, (below(found.input),), lambda r: _averaged(found, r))
        case Reduction():
            return _image(found.nodes, (below(found.input),), lambda r: _reduced(found, r))
        case Negation():
            return _image(found.nodes, (below(found.input),), lambda r: _scaled(r, -1))
        case Extreme(larger=larger):
            ranges = below(found.left), below(found.right)
            pick: Callable[..., Any] = max if larger else min
            return _image(found.nodes, ranges, lambda a, b: between(pick(a.inf, b.inf), pick(a.sup, b.sup)))
        case Sum(terms=(first, second)):
            if first.node is second.node:
                total = Term(first.coefficient + second.coefficient, first.node)
                return _image(found.nodes, (_term(total, below),), lambda r: r)
            left = _term(first, below)
            if left.interval == EVERYTHING:
                return Range()
            return _image(found.nodes, (left, _term(second, below)), _added)
        case Product(divided=False):
            return _image(found.nodes, (_factor(found.left, below), _factor(found.right, below)), _multiplied)
        case Product(left=left, right=float() | int() as divisor) if divisor and math.isfinite(divisor):
            share = 1 / exact(divisor)
            return _image(found.nodes, (_factor(left, below),), lambda r: _scaled(r, share))
    return Range()


def _clip(r: Any, bounds: Any) -> Any:
    return between(*(min(max(end, bounds.inf), bounds.sup) for end in (r.inf, r.sup)))


def _hull(*intervals: Any) -> Any:
    return between(min(r.inf for r in intervals), max(r.sup for r in intervals))


def _scaled(r: Any, factor: Any) -> Any:
    ends = _times(r.inf, factor), _times(r.sup, factor)
    return between(min(ends), max(ends))


def _times(a: Any, b: Any) -> Any:
    """A product in which zero wins: an infinite end is not a value."""
    return sympy.S.Zero if 0 in (a, b) else a * b


def _added(a: Any, b: Any) -> Any:
    low, high = a.inf + b.inf, a.sup + b.sup
    return EVERYTHING if sympy.nan in (low, high) else between(low, high)


def _multiplied(a: Any, b: Any) -> Any:
    products = [_times(x, y) for x in (a.inf, a.sup) for y in (b.inf, b.sup)]
    return between(min(products), max(products))


def _term(term: Term, below: Callable[[Node], Range]) -> Range:
    if term.node is None or not math.isfinite(term.coefficient):
        return Range(point(term.coefficient if term.node is None else math.nan))
    r = below(term.node)
    return Range(_scaled(r.interval, exact(term.coefficient)), r.nodes)


def _factor(factor: Any, below: Callable[[Node], Range]) -> Range:
    if isinstance(factor, (int, float)):
        return Range(point(factor))
    return below(factor)


def _averaged(pool: AveragePool, r: Any) -> Any:
    if pool.divisor is not None:
        return between(0, oo) if pool.divisor > 0 and r.inf >= 0 else EVERYTHING
    return _hull(r, between(0, 0)) if pool.counts_padding and any(pool.padding) else r


def _reduced(found: Reduction, r: Any) -> Any:
    if found.kind in ("mean", "max", "min"):
        return r
    if found.kind != "sum":
        return EVERYTHING
    count = reductions.count(found.input, found.dims)
    if count is not None:
        return _scaled(r, count)
    if r.inf >= 0:
        return between(0, oo)
    return between(-oo, 0) if r.sup <= 0 else EVERYTHING


# -- activations ------------------------------------------------------------------------------------------------------


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _log_logistic(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


_HALF_PI = Rational(*(math.pi / 2).as_integer_ratio()) + Rational(1, 2**50)  # more than it

# What does not decrease: the function, its value at zero where that is rational, and its limits at both infinities.
_INCREASING: dict[Any, tuple[Callable[[float], float], Any, Any, Any]] = {
    aten.sigmoid.default: (_logistic, Rational(1, 2), 0, 1),
    aten.log_sigmoid.default: (_log_logistic, None, -oo, 0),
    aten.tanh.default: (math.tanh, 0, -1, 1),
    aten.erf.default: (math.erf, 0, -1, 1),
    aten.atan.default: (math.atan, 0, -_HALF_PI, _HALF_PI),
    aten.asinh.default: (math.asinh, 0, -oo, oo),
    aten.exp.default: (math.exp, 1, 0, oo),
    aten.expm1.default: (math.expm1, 0, -1, oo),
}

# What is bounded below by its only minimum; the irrational ones are rounded down.
_LEAST: dict[Any, Any] = {
    aten.abs.default: 0, aten.square.default: 0, aten.hardswish.default: Rational(-3, 8),
    aten.silu.default: Rational(-2785, 10000), aten.gelu.default: Rational(-171, 1000),
    aten.mish.default: Rational(-3089, 10000),
}  # fmt: skip


def _activated(act: Activation, r: Any) -> Any:
    """The image of an interval, or more."""
    target, given = act.node.target, dict(act.parameters)
    if not all(math.isfinite(number) for number in given.values() if isinstance(number, float)):
        return EVERYTHING
    if target in _INCREASING:
        return between(_end(target, r.inf, upper=False), _end(target, r.sup, upper=True))
    if target is aten.hardsigmoid.default:
        return between(*(min(max(end + 3, 0), 6) / sympy.Integer(6) for end in (r.inf, r.sup)))
    if target is aten.softplus.default:
        return _softplus(exact(given["beta"]), exact(given["threshold"]), r)
    if target in _LEAST:
        if r == between(0, 0):
            return r
        # from zero on they do not decrease, nor become negative
        return between(0 if r.inf >= 0 else _LEAST[target], oo)
    if target in (aten.sin.default, aten.cos.default):
        return between(-1, 1)
    if target is aten.leaky_relu.default and act.monotone:
        slope = exact(given["negative_slope"])
        return between(*(end if end >= 0 else _times(end, slope) for end in (r.inf, r.sup)))
    if target is aten.elu.default and act.monotone and r.inf < 0:
        return between(-exact(given["alpha"]) * exact(given["scale"]), oo)
    if target is aten.threshold.default:
        kept = between(max(exact(given["threshold"]), r.inf), max(exact(given["threshold"]), r.sup))
        return _hull(kept, point(given["value"]))
    return EVERYTHING


def _end(target: Any, end: Any, upper: bool) -> Any:
    """An end of the image of an interval under a function that does not decrease, rounded outward."""
    function, at_zero, low, high = _INCREASING[target]
    if end == 0 and at_zero is not None:
        return at_zero
    x = _up(end) if upper else _down(end)
    if math.isinf(x):
        return high if upper else low
    try:
        y = function(x)
    except OverflowError:  # of exponentials, so it is above every float
        return oo if upper else exact(sys.float_info.max)
    margin = _ULPS * exact(math.ulp(y))
    return min(exact(y) + margin, high) if upper else max(exact(y) - margin, low)


def _softplus(beta: Any, threshold: Any, r: Any) -> Any:
    """``x`` where ``beta * x`` is above the threshold, otherwise ``log(1 + exp(beta * x)) / beta``."""
    if beta <= 0:
        return EVERYTHING
    return between(0 if r.inf >= 0 else min(0, threshold / beta), oo)


def unchanged(act: Activation) -> Any:
    """An interval on which an activation is the identity, or None."""
    target, given = act.node.target, dict(act.parameters)
    clamp = view(act.node)
    if isinstance(clamp, Clamp):
        return between(exact(clamp.low), exact(clamp.high))
    if target is aten.threshold.default and given["value"] == given["threshold"] and math.isfinite(given["value"]):
        return between(exact(given["threshold"]), oo)
    if target is aten.elu.default and given["scale"] != 1:
        return None
    return between(0, oo) if target in (aten.abs.default, aten.leaky_relu.default, aten.elu.default,
                                        aten.celu.default) else None  # fmt: skip
