"""Patch embeddings as linear layers over every geometry, layout and dtype."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from passes import PatchesAsLinear
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY


@st.composite
def embeddings(draw: st.DrawFn) -> ConvSpec:
    """Convolutions whose stride is their kernel, over images with and without a border beyond the last patch."""
    spec = draw(convolutions(padding=False, max_dilation=1, max_kernel=4))
    sizes = tuple(draw(st.integers(k, 3 * k)) for k in spec.kernel)
    return replace(spec, stride=spec.kernel, sizes=sizes)


@given(embeddings(), st.booleans())
@COSTLY
def test_patches(spec: ConvSpec, pointwise: bool):
    taken = set(spec.kernel) != {1} and (pointwise or spec.groups == 1)
    result = assert_rule(PatchesAsLinear(pointwise), spec.module(), spec.inputs(), matches=int(taken))
    kernels = {layer.kernel for layer in result.views(type(result.layers[0]))} if pointwise and taken else set()
    assert kernels <= {(1,) * spec.dims}
