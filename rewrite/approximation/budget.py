"""Which offers to take: a knapsack with one choice for each site (multiple-choice knapsack).

Errors of sites are taken for independent, so that their squares add up at the output. The squares are counted in small
steps and rounded up, and the best saving for each sum of steps follows by dynamic programming (Kellerer, Pferschy and
Pisinger, Knapsack Problems, 2004, chapter 11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 2000
"""Steps that the budget is counted in."""


@dataclass(frozen=True)
class Offer:
    """One choice of a site.

    Attributes:
        error: at the output of the program, not negative.
        saved: what it saves, of any unit; positive.
    """

    error: float
    saved: float


def most_saved(sites: Sequence[Sequence[Offer]], budget: float) -> list[int | None]:
    """For each site which offer to take, None for none, so that most is saved within an error of the output.

    Args:
        sites: the offers of each.
        budget: for the root of the sum of squares of the errors; infinity takes what saves most everywhere.
    """
    if math.isinf(budget):
        return [max(range(len(offers)), key=lambda i: offers[i].saved) if offers else None for offers in sites]
    table = _Table(sites, budget)
    return table.chosen(max(range(STEPS + 1), key=lambda steps: (table.saved[steps], -steps)))


def least_error(sites: Sequence[Sequence[Offer]], saved: float) -> list[int | None]:
    """For each site which offer to take so that so much is saved with the least error; all where it cannot be."""
    best = most_saved(sites, math.inf)
    high = _root(sites, best)
    for _ in range(4):  # each time the steps are finer
        table = _Table(sites, high)
        found = next((steps for steps in range(STEPS + 1) if table.saved[steps] >= saved * (1 - 1e-12)), None)
        if found is None:
            break
        best = table.chosen(found)
        low, high = high, _root(sites, best)
        if high >= low * (1 - 1e-6):
            break
    return best


def _root(sites: Sequence[Sequence[Offer]], taken: Sequence[int | None]) -> float:
    chosen = (offers[k] for offers, k in zip(sites, taken, strict=True) if k is not None)
    return math.sqrt(sum(offer.error**2 for offer in chosen))


class _Table:
    """The most that can be saved within each number of steps, and how."""

    def __init__(self, sites: Sequence[Sequence[Offer]], budget: float):
        step = budget**2 / STEPS
        self._costs = [[_steps(offer.error, step) for offer in offers] for offers in sites]
        self._taken: list[list[int]] = []
        self.saved = [0.0] * (STEPS + 1)
        for offers, costs in zip(sites, self._costs, strict=True):
            saved, taken = list(self.saved), [-1] * (STEPS + 1)
            for k, (offer, cost) in enumerate(zip(offers, costs, strict=True)):
                for steps in range(cost, STEPS + 1):
                    better = self.saved[steps - cost] + offer.saved
                    if better > saved[steps]:
                        saved[steps], taken[steps] = better, k
            self.saved = saved
            self._taken.append(taken)

    def chosen(self, steps: int) -> list[int | None]:
        """The offers behind :attr:`saved` of so many steps."""
        found: list[int | None] = []
        for taken, costs in zip(reversed(self._taken), reversed(self._costs), strict=True):
            k = taken[steps]
            found.append(None if k < 0 else k)
            steps -= costs[k] if k >= 0 else 0
        return found[::-1]


def _steps(error: float, step: float) -> int:
    """The steps of an error's square, more than there are where it does not fit."""
    if error == 0.0:
        return 0
    found = error**2 / step if step > 0 else math.inf
    return math.ceil(found * (1 - 1e-12)) if found <= STEPS else STEPS + 1
