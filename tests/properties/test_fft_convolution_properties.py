"""Convolutions in the frequency domain, over every geometry, layout and dtype."""

from __future__ import annotations

import math

from hypothesis import given

from passes import FftConvolution
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY


@given(convolutions(batches=(1, 2)))
@COSTLY
def test_transforms(spec: ConvSpec):
    result = assert_rule(
        FftConvolution(saving=0), spec.module(), spec.inputs(), matches=int(math.prod(spec.kernel) > 1), batches=(1, 5)
    )
    assert all(math.prod(layer.kernel) == 1 for layer in result.layers)
