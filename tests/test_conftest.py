"""Drawn examples see torch's generator in one and the same state."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

STATES = []


@given(st.integers())
def test_each_example_starts_from_the_same_torch_seed(drawn: int) -> None:
    STATES.append(torch.randn(3))
    assert torch.equal(STATES[0], STATES[-1])
