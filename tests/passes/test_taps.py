"""Which taps can be left out, against every way to leave some out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passes.taps import Axis, Cut, best_cuts, kernel_of, zero_borders

axes = st.builds(Axis, st.integers(1, 7), st.integers(1, 3), st.integers(0, 8), st.integers(0, 8))
limits = st.tuples(st.integers(0, 7), st.integers(0, 7))


def ways(axis: Axis, zeros: Cut) -> list[Cut]:
    """Every cut that leaves a tap."""
    pairs = [(a, b) for a in range(zeros[0] + 1) for b in range(zeros[1] + 1)]
    return [(a, b) for a, b in pairs if a + b < axis.count]


@given(axes, limits)
def test_the_most_taps_are_left_out_that_torch_can_pad(axis: Axis, zeros: Cut):
    def spelled(cut: Cut) -> bool:
        low, high = axis.without(cut)
        return low == high >= 0 or max(low, high) <= 0

    possible = [cut for cut in ways(axis, zeros) if spelled(cut)]
    found = axis.best(zeros)
    assert found in possible or (found == (0, 0) and not possible)
    assert sum(found) == max(map(sum, possible), default=0)


@given(st.integers(1, 7), st.integers(1, 3), limits)
def test_padding_by_name_may_stay(count: int, step: int, zeros: Cut):
    total = step * (count - 1)
    axis = Axis(count, step, total // 2, total - total // 2)

    def named(cut: Cut) -> bool:
        low, high = axis.without(cut)
        return 0 <= low <= high <= low + 1

    def spelled(cut: Cut) -> bool:
        low, high = axis.without(cut)
        return low == high >= 0 or max(low, high) <= 0

    [found] = best_cuts([axis], [zeros])
    possible = [cut for cut in ways(axis, zeros) if spelled(cut) or (axis.low != axis.high and named(cut))]
    assert found in possible
    assert sum(found) == max(map(sum, possible))


def test_padding_by_name_is_for_all_dimensions():
    """As few taps as possible are left, all dimensions by name or all of them evenly."""
    uneven, even = Axis(4, 1, 1, 2), Axis(5, 1, 2, 2)
    assert best_cuts([uneven, even], [(1, 0), (1, 0)]) == [(0, 0), (1, 0)]
    assert best_cuts([uneven, even], [(1, 0), (0, 1)]) == [(0, 0), (0, 0)]
    assert kernel_of([uneven, even], best_cuts([uneven, even], [(0, 1), (1, 0)])) == [3, 4]
    assert kernel_of([uneven, even], best_cuts([uneven, even], [(0, 1), (2, 2)])) == [3, 1]
    assert kernel_of([even, even], best_cuts([even, even], [(1, 0), (1, 1)])) == [5, 3]


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 1, 4, 6), (2, 3, 2, 3, 4)], ids=["1d", "2d", "3d"])
def test_borders_are_zero_in_all_channels(shape: tuple[int, ...]):
    weight = torch.zeros(shape)
    assert zero_borders(weight) == [(count, count) for count in shape[2:]]
    weight[1, 0, *[count // 2 for count in shape[2:]]] = 1
    assert zero_borders(weight) == [(count // 2, count - 1 - count // 2) for count in shape[2:]]
    weight[0, -1, *[0] * (len(shape) - 2)] = -1e-40
    assert [low for low, _ in zero_borders(weight)] == [0] * (len(shape) - 2)
    weight[0, 0, *[-1] * (len(shape) - 2)] = torch.nan
    assert not any(map(any, zero_borders(weight)))
    assert zero_borders(torch.full(shape, -0.0)) == [(count, count) for count in shape[2:]]
