"""Filters from a basis over every geometry and layout. In float64, where a rank is a rank."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from passes import FilterBasis
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.properties.kernels import inner, planted

DOUBLE = (torch.float64,)


def elements(result: Any) -> int:
    return sum(layer.weight.meta["val"].numel() for layer in result.layers)


@given(convolutions(max_kernel=4, dtypes=DOUBLE), st.integers(1, 2))
def test_filters_from_a_basis(spec: ConvSpec, rank: int):
    g, taps = spec.groups, inner(spec.module()).weight[0, 0].numel()
    inputs, outputs = spec.in_channels // g, spec.out_channels // g
    module = planted(spec, "gcrk,gocr->gock", (g, inputs, rank, taps), (g, outputs, inputs, rank))
    found = min(rank, outputs, taps)
    taken = found * (taps + outputs) < outputs * taps
    result = assert_rule(FilterBasis(), module, spec.inputs(), matches=int(taken))
    if taken:
        assert result.layers[0].out_channels == spec.in_channels * found
        assert elements(result) < inner(module).weight.numel()
