"""The identities between sizes on which pooling rules stand, proved for all sizes with SymPy."""

from __future__ import annotations

import itertools

import pytest
import sympy
import torch
from sympy import IndexedBase, Sum, Symbol, floor, simplify, symbols
from torch.nn import functional as F

H, S, D, K = (Symbol(name, integer=True, positive=True) for name in "HSDK")  # size, stride, dilation, taps
L, R, M, O = (Symbol(name, integer=True, nonnegative=True) for name in "LRMO")  # noqa: E741
U, V, G = (Symbol(name, integer=True, positive=True) for name in "UVG")


def outputs(size: sympy.Expr, low: sympy.Expr = L, high: sympy.Expr = R, taps: sympy.Expr = K,
            stride: sympy.Expr = S, dilation: sympy.Expr = D) -> sympy.Expr:  # fmt: skip
    """How many outputs a convolution has, or a pool: ``floor((H + L + R - D (K - 1) - 1) / S) + 1``."""
    return floor(sympy.expand((size + low + high - dilation * (taps - 1) - 1) / stride)) + 1


def transposed_outputs(size: sympy.Expr) -> sympy.Expr:
    """How many outputs a transposed convolution has, with equal padding."""
    return (size - 1) * S - 2 * L + D * (K - 1) + O + 1


def equal(a: sympy.Expr, b: sympy.Expr) -> bool:
    return simplify(sympy.expand(a - b)) == 0


def test_without_some_periods_there_are_as_many_outputs_less():
    assert equal(outputs(H - S * M), outputs(H) - M)


def test_without_some_positions_a_transposed_convolution_has_a_stride_less_for_each():
    assert equal(transposed_outputs(H - M), transposed_outputs(H) - S * M)


def test_the_adjoint_of_a_transposed_convolution_has_a_coefficient_for_each_position():
    # the convolution of its outputs; more only where the output padding is a stride or more
    found = outputs(transposed_outputs(H), L, L)
    assert equal(found, H + floor(O / S))
    assert equal(found.subs(O, 0), H)


def test_the_adjoint_of_a_convolution_covers_what_its_outputs_read():
    # from the first tap of the first output to the last tap of the last one
    spread = (U - 1) * S + D * (K - 1) + 1
    last_read = S * (U - 1) + D * (K - 1) - L
    assert equal(spread, last_read + L + 1)


def test_positions_in_steps_of_a_common_divisor_are_a_convolution_of_their_own():
    # s = g s', d = g d', p + r = g p': position s u + d i - p is r + g (s' u + d' i - p')
    u, i, r = symbols("u i r", integer=True)
    s, d, p = symbols("s d p", integer=True)
    place = G * s * u + G * d * i - (G * p - r)
    assert equal(place, r + G * (s * u + d * i - p))


def test_pooling_commutes_with_a_pointwise_convolution_in_sizes():
    pointwise = outputs(H, sympy.Integer(0), sympy.Integer(0), sympy.Integer(1), sympy.Integer(1))
    assert equal(pointwise, H)
    assert equal(outputs(pointwise), outputs(H))


def test_windows_that_tile_are_as_many_as_the_size_has_of_them():
    none = sympy.Integer(0)
    assert equal(outputs(G * K, none, none, K, K, sympy.Integer(1)), G)


def test_a_mean_of_means_is_the_mean():
    x = IndexedBase("x")
    i, j = symbols("i j", integer=True)
    inner = Sum(x[i, j], (j, 1, V)) / V
    outer = Sum(inner, (i, 1, U)) / U
    assert simplify(outer - Sum(x[i, j], (j, 1, V), (i, 1, U)) / (U * V)) == 0
    # with numbers for U and V nothing is left to the simplifier
    for m, n in itertools.product(range(1, 4), repeat=2):
        both = (outer - Sum(x[i, j], (j, 1, V), (i, 1, U)) / (U * V)).subs({U: m, V: n}).doit()
        assert sympy.expand(both) == 0


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_windows_without_gaps_hold_an_element(ceil_mode: bool):
    # a window starts at most half its length before the input, and never behind it
    for size, kernel, stride in itertools.product(range(1, 7), range(1, 6), range(1, 5)):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding >= kernel:
                pooled = F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, 1, ceil_mode)
                assert (pooled == 0).all()


def test_average_pooling_without_counted_zeros_averages_constants_to_themselves():
    for size, kernel, stride, ceil_mode in itertools.product(range(1, 7), range(1, 6), range(1, 5), (False, True)):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding >= kernel:
                x = torch.ones(1, 1, size, dtype=torch.float64)
                pooled = F.avg_pool1d(x, kernel, stride, padding, ceil_mode, count_include_pad=False)
                assert (pooled == 1).all()
                if padding == 0:
                    assert (F.avg_pool1d(x, kernel, stride, 0, ceil_mode, count_include_pad=True) == 1).all()
