"""The binary search alone: any answers, any number of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrite.halving import first_bad


@given(st.lists(st.booleans(), max_size=300))
def test_the_answer_is_where_good_turns_bad_whatever_happens_in_between(between):
    answers = [True, *between, False]
    asked: list[int] = []

    def is_good(k: int) -> bool:
        asked.append(k)
        return answers[k]

    last = len(answers) - 1
    found = first_bad(0, last, is_good)
    assert answers[found - 1]
    assert not answers[found]
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(last))
    assert not {0, last} & set(asked)


@pytest.mark.parametrize("first", range(1, 12))
def test_of_a_property_that_is_lost_once_it_is_that_place(first):
    assert first_bad(0, 11, lambda k: k < first) == first
