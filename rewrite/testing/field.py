r"""Arithmetic modulo a prime on int64 tensors: exact, whatever is added, multiplied or divided.

Elements are numbers in ``[0, p)`` with :math:`p < 2^{26}`. No sum overflows: a product is below :math:`2^{52}`, so
:math:`2^{11}` of them stay below :math:`2^{63}`, and :meth:`Field.matmul` reduces after as many. Plain sums have room
for :math:`2^{37}` elements. And each element is a float64 without rounding, so operators that only move values may run
there.
"""

from __future__ import annotations

import random
from fractions import Fraction

import torch
from torch import Tensor

PRIMES = (67108859, 67108837, 67108819, 67108777, 67108763, 67108757, 67108753, 67108747)
"""The largest below 2^26."""

TERMS = 1 << 11
"""How many products may be added before they are reduced."""

_NEAR = Fraction(1, 1 << 50)
_LARGEST_DENOMINATOR = 10**6


class ZeroDivisorError(ArithmeticError):
    """A drawn value has no inverse; another seed has."""


class Field:
    """The integers modulo a prime, with functions that are nothing but functions.

    Args:
        prime: one of :data:`PRIMES`.
        seed: of the elements drawn, and of the functions.
    """

    def __init__(self, prime: int = PRIMES[0], seed: int = 0):
        self.prime = prime
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._functions: dict[str, dict[int, int]] = {}

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform elements."""
        return torch.randint(self.prime, shape, generator=self._generator)

    def number(self, value: float) -> int:
        """The element of a number: for a float the simplest fraction that it stands for, so ``1 / 3`` is a third.

        The fraction is one with a denominator up to a million that the float is within rounding of, ``2^-50``; if there
        is none, the float's own value.

        Raises:
            ArithmeticError: infinity or NaN.
        """
        try:
            exact = Fraction(value)
        except (OverflowError, ValueError):
            raise ArithmeticError(f"{value} is no element of a field") from None
        simple = exact.limit_denominator(_LARGEST_DENOMINATOR)
        exact = simple if abs(simple - exact) <= _NEAR * abs(exact) else exact
        return exact.numerator * pow(exact.denominator, -1, self.prime) % self.prime

    def numbers(self, values: Tensor) -> Tensor:
        """The elements of a tensor of numbers."""
        if not values.is_floating_point():
            return values.long().remainder(self.prime)
        elements = [self.number(float(value)) for value in values.double().flatten().tolist()]
        return torch.tensor(elements, dtype=torch.int64).reshape(values.shape)

    def reduce(self, values: Tensor) -> Tensor:
        """Integers to elements."""
        return values.remainder(self.prime)

    def multiply(self, a: Tensor | int, b: Tensor | int) -> Tensor:
        """The product, element by element."""
        product: Tensor = torch.as_tensor(a) * b
        return self.reduce(product)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` of matrices or stacks of them."""
        total = torch.zeros((), dtype=torch.int64)
        for start in range(0, a.shape[-1], TERMS):
            part = torch.matmul(a[..., start : start + TERMS], b[..., start : start + TERMS, :])
            total = self.reduce(total + self.reduce(part))
        if a.shape[-1] == 0:
            return torch.matmul(a, b)
        return total

    def power(self, a: Tensor, exponent: int) -> Tensor:
        """A natural power, by squaring."""
        result, square = torch.ones_like(a), a
        while exponent:
            if exponent & 1:
                result = self.multiply(result, square)
            square, exponent = self.multiply(square, square), exponent >> 1
        return result

    def inverse(self, a: Tensor) -> Tensor:
        """``1 / a``, which is :math:`a^{p-2}`.

        Raises:
            ZeroDivisorError: an element is zero.
        """
        if bool((a == 0).any()):
            raise ZeroDivisorError
        return self.power(a, self.prime - 2)

    def apply(self, function: str, a: Tensor) -> Tensor:
        """A function of each element, of which nothing is known: equal arguments have equal values, all else is random.

        No value is zero.
        """
        known = self._functions.setdefault(function, {})
        different, places = torch.unique(a, return_inverse=True)
        for argument in different.tolist():
            if argument not in known:
                known[argument] = self._random.randrange(1, self.prime)
        values = torch.tensor([known[argument] for argument in different.tolist()], dtype=torch.int64)
        return values[places]
