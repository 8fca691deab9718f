"""Which offers to take: a knapsack over the program, in which offers that overlap exclude each other.

Errors of sites are taken for independent, so that their squares add up at the output. The squares are counted in small
steps and rounded up. Then the most that can be saved up to each place of the program, within each number of steps,
follows from what can be saved up to the places before it (dynamic programming, as for multiple-choice knapsacks:
Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11, and for weighted intervals).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 2000
"""Steps that the budget is counted in."""


@dataclass(frozen=True)
class Offer:
    """One thing that can be done to a part of a program.

    Attributes:
        error: at the output of the program, not negative.
        saved: what it saves, of any unit; positive.
        first, last: the places in the program between which it is; offers that share a place exclude each other.
    """

    error: float
    saved: float
    first: int = 0
    last: int = 0


def most_saved(offers: Sequence[Offer], budget: float) -> list[int]:
    """Which offers to take so that most is saved within an error of the output.

    Args:
        offers: in any order.
        budget: for the root of the sum of squares of their errors; infinity for none.

    Returns:
        Positions in ``offers``, in the order of the program.
    """
    table = _Table(offers, budget)
    return table.chosen(int(table.saved.argmax()))  # the first of equal ones: the least error


def least_error(offers: Sequence[Offer], saved: float) -> list[int]:
    """Which offers to take so that so much is saved with the least error; what saves most where that cannot be."""
    best = most_saved(offers, math.inf)
    high = _root(offers, best)
    for _ in range(4):  # each time the steps are finer
        table = _Table(offers, high)
        enough = (table.saved >= saved * (1 - 1e-12)).nonzero()
        if not len(enough):
            break
        best, low = table.chosen(int(enough[0])), high
        high = _root(offers, best)
        if high >= low * (1 - 1e-6):
            break
    return best


def _root(offers: Sequence[Offer], taken: Sequence[int]) -> float:
    return math.sqrt(sum(offers[k].error ** 2 for k in taken))


class _Table:
    """The most that can be saved within each number of steps, ``saved``, and how."""

    def __init__(self, offers: Sequence[Offer], budget: float):
        step = budget**2 / STEPS
        self._costs = [_steps(offer.error, step) for offer in offers]
        self._ends = sorted({offer.last for offer in offers})
        self._before = [bisect.bisect_left(self._ends, offer.first) for offer in offers]
        by_end: dict[int, list[int]] = {}
        for k, offer in enumerate(offers):
            by_end.setdefault(offer.last, []).append(k)
        saved = [torch.zeros(STEPS + 1, dtype=torch.float64)]
        self._taken: list[Tensor] = []
        for end in self._ends:
            best, taken = saved[-1].clone(), torch.full((STEPS + 1,), -1)
            for k in by_end[end]:
                cost = self._costs[k]
                if cost <= STEPS:
                    found = torch.full_like(best, -math.inf)
                    found[cost:] = saved[self._before[k]][: STEPS + 1 - cost] + offers[k].saved
                    better = found > best
                    best, taken = torch.where(better, found, best), torch.where(better, k, taken)
            saved.append(best)
            self._taken.append(taken)
        self.saved = saved[-1]

    def chosen(self, steps: int) -> list[int]:
        """The offers behind :attr:`saved` of so many steps."""
        found: list[int] = []
        place = len(self._ends)
        while place > 0:
            k = int(self._taken[place - 1][steps])
            if k < 0:
                place -= 1
                continue
            found.append(k)
            steps -= self._costs[k]
            place = self._before[k]
        return found[::-1]


def _steps(error: float, step: float) -> int:
    """The steps of an error's square, more than there are where it does not fit."""
    if error == 0.0 or math.isinf(step):
        return 0 if math.isfinite(error) else STEPS + 1
    found = error**2 / step if step > 0 else math.inf
    return math.ceil(found * (1 - 1e-12)) if found <= STEPS else STEPS + 1
