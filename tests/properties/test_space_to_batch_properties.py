"""Dilated convolutions over phases, over every geometry, layout and dtype."""

from __future__ import annotations

from hypothesis import given

from passes import SpaceToBatch
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY


@given(convolutions(max_stride=2))
@COSTLY
def test_phases(spec: ConvSpec):
    dilated = [i for i in range(spec.dims) if spec.dilation[i] > 1 and spec.kernel[i] > 1]
    taken = bool(dilated) and all(spec.stride[i] == 1 for i in dilated)
    result = assert_rule(SpaceToBatch(), spec.module(), spec.inputs(), matches=int(taken))
    if taken:
        (layer,) = result.layers
        assert all(d == 1 or k == 1 for d, k in zip(layer.dilation, layer.kernel, strict=True))
