"""The knapsack against trying everything."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrite.approximation.budget import Offer, least_error, most_saved

numbers = st.floats(0.01, 1.0)
errors = st.one_of(st.just(0.0), numbers)
offer = st.builds(lambda error, saved, first, length: Offer(error, saved, first, first + length), errors, numbers,
                  st.integers(0, 5), st.integers(0, 2))  # fmt: skip
offers = st.lists(offer, max_size=7)


def possible(given: list[Offer]) -> list[tuple[int, ...]]:
    """All sets of offers that do not overlap."""
    found = []
    for size in range(len(given) + 1):
        for chosen in itertools.combinations(range(len(given)), size):
            pairs = itertools.combinations((given[k] for k in chosen), 2)
            if all(a.last < b.first or b.last < a.first for a, b in pairs):
                found.append(chosen)
    return found


def error(given: list[Offer], chosen: tuple[int, ...] | list[int]) -> float:
    return math.sqrt(sum(given[k].error ** 2 for k in chosen))


def saved(given: list[Offer], chosen: tuple[int, ...] | list[int]) -> float:
    return sum(given[k].saved for k in chosen)


@given(offers, st.floats(0.05, 2.0))
def test_most_is_saved_within_the_budget(some: list[Offer], budget: float) -> None:
    chosen = most_saved(some, budget)
    assert tuple(sorted(chosen)) in possible(some)
    assert error(some, chosen) <= budget * (1 + 1e-9)
    # squares are rounded up by a step each, so what fits with so much room is found
    room = budget * math.sqrt(1 - len(some) / 2000)
    best = max(saved(some, each) for each in possible(some) if error(some, each) <= room)
    assert saved(some, chosen) >= best - 1e-9


@given(offers)
def test_without_a_budget_everything_that_fits_is_taken(some: list[Offer]) -> None:
    assert saved(some, most_saved(some, math.inf)) == pytest.approx(max(saved(some, each) for each in possible(some)))


@given(offers, st.floats(0.05, 2.0))
def test_so_much_is_saved_with_the_least_error(some: list[Offer], wanted: float) -> None:
    chosen = least_error(some, wanted)
    enough = [each for each in possible(some) if saved(some, each) >= wanted]
    if not enough:
        assert saved(some, chosen) == pytest.approx(max(saved(some, each) for each in possible(some)))
        return
    assert saved(some, chosen) >= wanted - 1e-9
    assert error(some, chosen) <= min(error(some, each) for each in enough) * 1.05 + 1e-9


def test_what_cannot_be_is_not_taken() -> None:
    assert most_saved([Offer(math.inf, 1.0, 0, 0), Offer(0.1, 0.5, 1, 1)], math.inf) == [1]
    assert most_saved([], 1.0) == []
