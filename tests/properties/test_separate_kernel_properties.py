"""Separable kernels over every geometry and layout. In float64, where a rank is a rank."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from passes import SeparateKernel
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY
from tests.properties.kernels import planted

DOUBLE = (torch.float64,)


@given(convolutions(dims=2, max_kernel=7, dtypes=DOUBLE), st.integers(1, 3))
@COSTLY
def test_separable_kernels(spec: ConvSpec, rank: int):
    g, (rows, columns) = spec.groups, spec.kernel
    inputs, outputs = spec.in_channels // g, spec.out_channels // g
    module = planted(spec, "grci,gorj->gocij", (g, rank, inputs, rows), (g, outputs, rank, columns))
    result = assert_rule(SeparateKernel(), module, spec.inputs())
    if result.record.commits:
        first, second = result.layers
        assert first.groups == second.groups == g
        assert first.out_channels == second.in_channels
        assert first.out_channels // g <= max(rank, min(inputs * columns, outputs * rows))
        assert {first.kernel, second.kernel} == {(rows, 1), (1, columns)}
    elif min(spec.kernel) > 1:
        # of few taps, or where two maps are much larger than one, nobody would ask
        assert result.reasons or max(rows, columns) <= 4 or min(spec.sizes) < 9
