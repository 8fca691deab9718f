"""Arithmetic modulo a prime against Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewrite.testing.field import PRIMES, TERMS, Field, ZeroDivisorError

PRIME = PRIMES[0]
elements = st.one_of(st.sampled_from([0, 1, PRIME - 1]), st.integers(0, PRIME - 1))


@pytest.mark.parametrize("prime", PRIMES)
def test_primes_are_prime_and_leave_room_for_sums(prime: int):
    assert all(prime % n for n in range(2, isqrt(prime) + 1))
    assert TERMS * (prime - 1) ** 2 < 2**63


@given(st.lists(st.tuples(elements, elements), min_size=1, max_size=6), st.integers(0, 9))
def test_elementwise_arithmetic(pairs: list[tuple[int, int]], exponent: int):
    field = Field(PRIME)
    a, b = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert field.multiply(a, b).tolist() == [x * y % PRIME for x, y in pairs]
    assert field.power(a, exponent).tolist() == [pow(x, exponent, PRIME) for x, _ in pairs]
    assert field.reduce(a - b).tolist() == [(x - y) % PRIME for x, y in pairs]


@given(st.lists(st.integers(1, PRIME - 1), min_size=1, max_size=5))
def test_inverses(values: list[int]):
    assert Field(PRIME).inverse(torch.tensor(values)).tolist() == [pow(value, -1, PRIME) for value in values]


def test_zero_has_no_inverse():
    with pytest.raises(ZeroDivisorError):
        Field(PRIME).inverse(torch.tensor([2, 0]))


@pytest.mark.parametrize("length", [0, 1, TERMS, TERMS + 1, 3 * TERMS - 1])
def test_products_of_the_largest_elements_do_not_overflow(length: int):
    a = torch.full((2, length), PRIME - 1)
    assert Field(PRIME).matmul(a, a.T).tolist() == [[length * (PRIME - 1) ** 2 % PRIME] * 2] * 2


@given(*[st.fractions(-100, 100, max_denominator=1000)] * 2)
def test_a_float_is_the_fraction_that_it_stands_for(a: Fraction, b: Fraction):
    field = Field(PRIME)
    expected = a.numerator * pow(a.denominator, -1, PRIME) % PRIME
    assert field.number(float(a)) == expected
    assert (field.number(float(a)) == field.number(float(b))) == (float(a) == float(b))


def test_other_floats_are_their_own_value():
    field = Field(PRIME)
    near = 0.1 + 2**-45
    assert field.number(near) != field.number(0.1)
    assert field.number(near) * 2**60 % PRIME == int(Fraction(near) * 2**60) % PRIME
    with pytest.raises(ArithmeticError, match="inf"):
        field.number(float("inf"))


def test_an_unknown_function_is_a_function_and_nothing_more():
    field = Field(PRIME)
    values = field.apply("sqrt", torch.tensor([4, 9, 4]))
    assert values[0] == values[2]
    assert values[0] != values[1]
    assert torch.equal(field.apply("sqrt", torch.tensor([[9], [4]])), values[1::1].reshape(2, 1))
    assert field.apply("relu", torch.tensor([4])) != values[0]
    assert field.multiply(values[0], values[0]) != 4
    assert not torch.equal(Field(PRIME, seed=1).apply("sqrt", torch.tensor([4, 9, 4])), values)
