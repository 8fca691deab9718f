"""The minimum cut against trying every labelling."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from rewrite.select.energy import NEVER, Energy

COSTS = st.integers(0, 50)
NAMES = ("a", "b", "c", "d")


def least(names: tuple[str, ...], cost: Callable[[dict[str, int]], int]) -> int:
    """The least cost over all labellings."""
    return min(cost(dict(zip(names, labels, strict=True))) for labels in itertools.product((0, 1), repeat=len(names)))


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int]]:
    """Costs of a pair whose equal labels cost no more together than its different ones."""
    same, mixed, other = draw(COSTS), draw(COSTS), draw(COSTS)
    return (same, mixed), (other, draw(st.integers(0, mixed + other - same)) if mixed + other > same else 0)


@given(st.lists(st.tuples(st.sampled_from(NAMES), COSTS, COSTS), max_size=6),
       st.lists(st.tuples(st.permutations(NAMES), tables()), max_size=6))  # fmt: skip
def test_the_least_cost_is_found(singles, pairs):
    pairs = [(order[0], order[1], table) for order, table in pairs if sum(table[0]) + sum(table[1]) >= 0]
    pairs = [pair for pair in pairs if pair[2][0][1] + pair[2][1][0] >= pair[2][0][0] + pair[2][1][1]]
    energy = Energy()
    for name in NAMES:
        energy.add(name, 0, 0)
    for name, zero, one in singles:
        energy.add(name, zero, one)
    for a, b, table in pairs:
        energy.add_pair(a, b, table)

    def cost(labels: dict[str, int]) -> int:
        alone = sum((zero, one)[labels[name]] for name, zero, one in singles)
        return alone + sum(table[labels[a]][labels[b]] for a, b, table in pairs)

    found, labels = energy.minimize()
    assert found == least(NAMES, cost)
    assert cost({name: labels[name] for name in NAMES}) == found


@given(st.integers(1, 40), st.lists(st.tuples(COSTS, COSTS), min_size=1, max_size=3), COSTS, COSTS)
def test_a_conversion_is_paid_once_for_all_readers(price, readers, zero, one):
    energy = Energy()
    energy.add("value", zero, one)
    names = tuple(f"reader {i}" for i in range(len(readers)))
    for name, costs in zip(names, readers, strict=True):
        energy.add(name, *costs)
    energy.add_conversion("value", names, price)

    def cost(labels: dict[str, int]) -> int:
        converted = any(labels[name] != labels["value"] for name in names)
        alone = (zero, one)[labels["value"]] + sum(
            costs[labels[name]] for name, costs in zip(names, readers, strict=True)
        )
        return alone + price * converted

    found, labels = energy.minimize()
    assert found == least(("value", *names), cost)
    assert cost({name: labels[name] for name in ("value", *names)}) == found


def test_what_no_cut_expresses_costs_no_more_than_it_says():
    energy = Energy()
    energy.add("a", 0, 0)
    energy.add("b", 0, 0)
    table = ((5, 1), (2, 5))
    energy.add_pair("a", "b", table)
    found, labels = energy.minimize()
    assert table[labels["a"]][labels["b"]] <= found


def test_what_must_not_be_is_not():
    energy = Energy()
    energy.add("a", 0, NEVER)
    energy.add_pair("a", "b", ((0, NEVER), (NEVER, 0)))
    energy.add("b", 1000, 0)
    assert energy.minimize() == (1000, {"a": 0, "b": 0})
