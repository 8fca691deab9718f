"""From which size on one way to compute the same takes fewer operations than another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sympy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rewrite.arithmetic import Number


@dataclass(frozen=True)
class Crossover:
    """Where a second way to compute the same is cheaper than the first, as one size changes and nothing else.

    Every size of the range is looked at, for costs may have steps.

    Attributes:
        way: the second way, in the plural: "transforms".
        size: the symbol of the size, among those of the costs.
        before, after: floating-point operations of both ways.
        low, high: the range of the size, both ends included.
        here: the size as it is.
        cheaper: the ranges where the second way takes strictly fewer, in order, both ends included.
        where: what other symbols of the costs stand for.
    """

    way: str
    size: str
    before: sympy.Expr
    after: sympy.Expr
    low: int
    high: int
    here: int
    cheaper: tuple[tuple[int, int], ...]
    where: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def search(
        cls, way: str, size: str, before: Number, after: Number, low: int, high: int, here: int,
        exact: Callable[[int], tuple[float, float]] | None = None, where: Mapping[str, str] | None = None,
    ) -> Crossover:  # fmt: skip
        """Compare both ways at every size of a range.

        Args:
            way, size, before, after, low, high, here, where: see the attributes.
            exact: both costs at a size, where the expressions hold more than the size. By default it is substituted.
        """
        before, after = sympy.sympify(before), sympy.sympify(after)

        def substituted(number: int) -> tuple[float, float]:
            first, second = (side.subs({name: number for name in side.free_symbols if str(name) == size})
                             for side in (before, after))  # fmt: skip
            return first, second

        runs: list[tuple[int, int]] = []
        for number in range(low, high + 1):
            first, second = (exact or substituted)(number)
            if second < first:
                begins = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
                runs.append((begins, number))
        return cls(way, size, before, after, low, high, here, tuple(runs), where or {})

    @property
    def start(self) -> int | None:
        """The least size from which on the second way is cheaper up to the end of the range; None where it is not."""
        return self.cheaper[-1][0] if self.cheaper and self.cheaper[-1][1] == self.high else None

    def __str__(self) -> str:
        """``transforms take fewer operations from K = 37 on (of 2 to 300; here 129): 2400*K against ...``"""
        terms = "".join(f", {name} = {meaning}" for name, meaning in self.where.items())
        return (f"{self.way} take fewer operations {self._when()} (of {self.low} to {self.high}; here {self.here}): "
                f"{self.before} against {self.after}{terms}")  # fmt: skip

    def _when(self) -> str:
        if not self.cheaper:
            return f"for no {self.size}"
        first, last = self.cheaper[0][0], self.cheaper[-1][1]
        if self.start is not None:
            if self.start == self.low:
                return f"for every {self.size}"
            partly = f", for some from {first} on" if len(self.cheaper) > 1 else ""
            return f"from {self.size} = {self.start} on{partly}"
        partly = ", not for all between" if len(self.cheaper) > 1 else ""
        if first == self.low:
            return f"up to {self.size} = {last}{partly}"
        return f"from {self.size} = {first} to {last}{partly}"
