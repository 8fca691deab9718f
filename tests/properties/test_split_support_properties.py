"""Depthwise kernels of few taps over every geometry, layout and dtype."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from passes import SplitSupport
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY
from tests.properties.kernels import inner


@given(convolutions(dims=2, depthwise=True, max_kernel=7), st.data())
@COSTLY
def test_parts_of_kernels(spec: ConvSpec, data: st.DataObject):
    module = replace(spec, out_channels=spec.in_channels).module()
    conv = inner(module)
    with torch.no_grad():
        for channel in range(spec.in_channels):
            rows, columns = (data.draw(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1))) for k in spec.kernel)
            keep = torch.zeros(spec.kernel, dtype=torch.bool)
            keep[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
            conv.weight[channel, 0][~keep] = 0
            if data.draw(st.booleans()):
                conv.weight[channel, 0] = 0
                conv.weight[channel, 0][tuple(k // 2 for k in spec.kernel)] = data.draw(st.sampled_from([1.0, 2.0]))
                if conv.bias is not None and data.draw(st.booleans()):
                    conv.bias[channel] = 0
    result = assert_rule(SplitSupport(), module, spec.inputs())
    taps = sum(layer.out_channels * layer.kernel[0] * layer.kernel[1] for layer in result.layers)
    whole = spec.in_channels * spec.kernel[0] * spec.kernel[1]
    assert taps < whole if result.record.commits else taps == whole
