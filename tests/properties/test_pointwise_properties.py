"""Linear layers as 1x1 convolutions and back, over every geometry, layout and dtype."""

from __future__ import annotations

from hypothesis import given
from torch import nn

from passes import ConvolutionAsLinear, LinearAsConvolution
from rewrite.testing import ConvSpec, LinearSpec, assert_rule, convolutions, linears
from tests.drawn import COSTLY


@given(linears(dims=(0, 1, 2, 3)))
@COSTLY
def test_linear_layers_as_convolutions(spec: LinearSpec):
    assert_rule(LinearAsConvolution(), spec.module(), spec.inputs(), matches=int(bool(spec.sizes)))


@given(convolutions(max_kernel=1))
@COSTLY
def test_convolutions_as_linear_layers(spec: ConvSpec):
    module = spec.module()
    inner = module[1] if isinstance(module, nn.Sequential) else module
    padded = not isinstance(inner.padding, str) and any(inner.padding) and inner.padding_mode == "zeros"
    taken = spec.groups == 1 and not padded
    assert_rule(ConvolutionAsLinear(), module, spec.inputs(), matches=int(taken))
