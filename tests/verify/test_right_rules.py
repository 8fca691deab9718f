"""A right rule is never rejected: folds of batch norms in every geometry, and others whose rounding is unusual."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewrite.driver import Driver
from rewrite.rule import Fidelity
from rewrite.verify import MatchVerifier
from tests.verify.program import Program
from tests.verify.rules import FoldNorm, replacing

aten = torch.ops.aten


@st.composite
def folds(draw):
    """A convolution and a batch norm: dimensions, geometry, dtype, and statistics from tame to nearly singular."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    kernel = [draw(st.integers(1, 5 if dims < 3 else 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 3)) for _ in range(dims)]
    padding = [draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [n + draw(st.integers(0, 20 if dims < 3 else 4)) for n in least]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    batch = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    exponent = draw(st.integers(-4, 3))

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    p = Program()
    x = p.input(torch.randn(2, inputs, *size).to(dtype), batch=batch)
    w = p.weight(normal(outputs, inputs // groups, *kernel))
    bias = p.weight(normal(outputs)) if draw(st.booleans()) else None
    conv = getattr(aten, f"conv{dims}d").default
    y = p(conv, x, w, bias, stride, padding, dilation, groups)
    variance = torch.rand(outputs, generator=generator, dtype=torch.float64) * 10.0**exponent
    mean, var = p.weight(normal(outputs, scale=3.0)), p.weight(variance.to(dtype))
    gamma, beta = (p.weight(normal(outputs)), p.weight(normal(outputs))) if draw(st.booleans()) else (None, None)
    norm = p(aten._native_batch_norm_legit_no_training.default, y, gamma, beta, mean, var, 0.1, 1e-5)
    return p.graph(p(operator.getitem, norm, 0))


@given(folds())
def test_a_folded_norm_is_accepted(graph):
    (record,) = Driver(graph, MatchVerifier()).run([FoldNorm()])
    assert not record.rejections
    (commit,) = record.commits
    # far from the bound, so that no draw is ever near it
    assert commit.verdict.error < 0.5
