"""Mixers of depthwise convolutions over every geometry and dtype."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import MergeSupport
from rewrite.testing import assert_rule
from tests.drawn import COSTLY


class Mixer(nn.Module):
    """Depthwise layers over consecutive channels, None for channels that pass through."""

    def __init__(self, layers: list[nn.Module | None], widths: list[int]):
        super().__init__()
        self.layers, self.widths = nn.ModuleList(layer or nn.Identity() for layer in layers), widths

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.widths, 1)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], 1)


@st.composite
def mixers(draw: st.DrawFn) -> tuple[Mixer, Tensor]:
    """Branches that keep the size, of any kernels with zeros around the image, and an input."""
    dims = draw(st.integers(1, 3))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layers: list[nn.Module | None] = []
    widths = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    plain = draw(st.integers(0, len(widths) - 1)) if draw(st.booleans()) else -1
    for i, width in enumerate(widths):
        kernel = tuple(draw(st.integers(1, 5)) for _ in range(dims))
        dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
        bias = draw(st.booleans())
        layer = kind(width, width, kernel, padding="same", dilation=dilation, groups=width, bias=bias)
        layers.append(None if i == plain else layer)
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    sizes = [draw(st.integers(1, 7)) for _ in range(dims)]
    return Mixer(layers, widths).to(dtype).eval(), torch.randn(2, sum(widths), *sizes, dtype=dtype)


@given(mixers())
@COSTLY
def test_mixers(case: tuple[Mixer, Tensor]):
    model, x = case
    result = assert_rule(MergeSupport(), model, x, matches=1)
    (layer,) = result.layers
    assert layer.groups == x.shape[1]
