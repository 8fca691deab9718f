"""Convolutions by transforms in the model, over lengths, kernels, points, channels and what is kept."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from passes import ShrinkTransform
from passes.fft_convolution.circle import fast_length
from passes.shrink_transform.line import Line
from rewrite.testing import assert_rule
from tests.drawn import COSTLY
from tests.passes.transforming import Transformed


@st.composite
def lines(draw: st.DrawFn, longest: int = 24) -> Line:
    """One dimension: with or without wrap-around, odd and even, kept in full or in part."""
    size, kernel, start = draw(st.integers(2, longest)), draw(st.integers(1, longest)), draw(st.integers(0, longest))
    least = max(2, start + 1, size + kernel - 1 - start)
    period = draw(st.one_of(*[st.integers(least, 3 * longest)] * 3, st.integers(max(2, start + 1), 3 * longest)))
    end = draw(st.one_of(st.just(min(start + size, period)), st.integers(start + 1, period)))
    return Line(size, kernel, period, start, end)


@st.composite
def programs(draw: st.DrawFn) -> tuple[Transformed, torch.Tensor, list[Line]]:
    """A module, an input for it, and its dimensions."""
    dims = draw(st.sampled_from([1, 1, 2]))
    each = [draw(lines(24 if dims == 1 else 7)) for _ in range(dims)]
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape: dict[str, Any] = {
        "each": ((channels,), (batch, channels)),
        "one kernel": ((), (batch, channels)),
        "one input": ((channels,), (batch, 1)),
        "heads": ((2, channels), (batch, 2, channels)),
        "shared heads": ((2, 1), (batch, 2, channels)),
    }
    kernel, x = shape[draw(st.sampled_from(sorted(shape)))]
    module = Transformed(
        (*kernel, *(line.kernel for line in each)), [line.period for line in each],
        [(line.start, line.end) for line in each],
        norm=draw(st.sampled_from([None, "ortho", "forward"])), swapped=draw(st.booleans()),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    return module.eval(), torch.randn(*x, *(line.size for line in each), generator=generator), each


@given(programs(), st.sampled_from([0.0, 1e9]))
@COSTLY
def test_transforms(program: tuple[Transformed, torch.Tensor, list[Line]], direct: float):
    module, x, each = program
    result = assert_rule(ShrinkTransform(direct), module, x, batches=(1, 5))
    fits = all(not line.wraps and line.first < line.last for line in each)
    points, now = 1, 1
    for line in each:
        points *= fast_length(line.circle.least) if fits else 1
        now *= line.period
    assert len(result.record.commits) == int(fits and (direct > 0 or points < now))
