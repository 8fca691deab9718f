"""Kernels with borders of zeros over every geometry, layout and dtype."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from passes import TrimKernel
from passes.taps import zero_borders
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY
from tests.properties.kernels import inner


@given(convolutions(max_kernel=6), st.data())
@COSTLY
def test_borders_of_zeros(spec: ConvSpec, data: st.DataObject):
    module = spec.module()
    conv = inner(module)
    borders = [data.draw(st.tuples(st.integers(0, k), st.integers(0, k))) for k in spec.kernel]
    with torch.no_grad():
        for dim, (low, high) in enumerate(borders, start=2):
            conv.weight.narrow(dim, 0, low).zero_()
            conv.weight.narrow(dim, conv.weight.shape[dim] - high, high).zero_()
    result = assert_rule(TrimKernel(), module, spec.inputs())
    (layer,) = result.layers
    left = zero_borders(result.graph.value(layer.weight))
    behind = any(operator.startswith(("pad", "constant_pad")) for operator in result.operators)
    for (low, high), pair, count in zip(left, layer.padding, layer.kernel, strict=True):
        # what could be left out without padding one end more than the other is; of zeros alone one tap stays
        assert low == count or not (low and high and pair[0] == pair[1])
        assert low == count or not ((low or high) and pair == (0, 0) and not behind)
