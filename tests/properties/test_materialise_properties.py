"""Computed kernels over their whole space of attributes: folded, verified, and equal to the module."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.models.dcls import DclsConv
from examples.models.doconv import DOConv
from examples.models.sgconv import GlobalConv
from passes import FoldConstants
from rewrite.testing import assert_rule

# each example is captured anew, which takes longer than what is tried
FEW = settings(max_examples=-(-settings().max_examples // 3))
DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def spacings(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A layer with learned spacings in one to three dimensions, and what goes into it."""
    dims = draw(st.integers(1, 3))
    size = tuple(draw(st.integers(1, 6)) for _ in range(dims))
    groups = draw(st.integers(1, 2))
    padding = tuple(draw(st.integers(0, side)) for side in size)
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"]))
    torch.manual_seed(draw(st.integers(0, 9)))
    version = draw(st.sampled_from(["v0", "v1", "max", "gauss"]))
    conv = DclsConv(
        2 * groups, 2 * groups, size, draw(st.integers(1, 4)), version=version, groups=groups,
        stride=draw(st.integers(1, 2)), bias=draw(st.booleans()), padding=padding, padding_mode=mode,
    )  # fmt: skip
    with torch.no_grad():
        conv.positions.mul_(draw(st.sampled_from([0.0, 1.0, 3.0])))  # at the centre, between taps, beyond the edge
    dtype = draw(DTYPES)
    return conv.eval().to(dtype), torch.randn(2, 2 * groups, *(side + 2 for side in size), dtype=dtype)


@FEW
@given(spacings())
def test_learned_spacings(drawn: tuple[nn.Module, Tensor]) -> None:
    conv, x = drawn
    result = assert_rule(FoldConstants(), conv, x, matches=1)
    (layer,) = result.layers
    assert result.graph.weights[str(layer.weight.target)].shape[2:] == conv.size


@st.composite
def products(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """An over-parameterized convolution, and what goes into it."""
    kernel, groups = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 9)))
    conv = DOConv(
        2 * groups, 2 * groups, kernel, draw(st.integers(1, 2)), groups=groups,
        factor=kernel * kernel + draw(st.integers(0, 3)), padding_mode=draw(st.sampled_from(["zeros", "reflect"])),
    )  # fmt: skip
    dtype = draw(DTYPES)
    return conv.eval().to(dtype), torch.randn(2, 2 * groups, 6, 5, dtype=dtype)


@FEW
@given(products())
def test_products_of_factors(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rule(FoldConstants(), *drawn, matches=1)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A structured global convolution that was called before, and a sequence shorter or longer than its kernel."""
    points = draw(st.sampled_from([1, 2, 5]))
    options: dict[str, Any] = {
        "mode": draw(st.sampled_from(["cat", "sum"])),
        "interpolation": draw(st.sampled_from(["linear", "nearest"])),
        "bidirectional": draw(st.booleans()),
        "power": draw(st.sampled_from([None, 0.5])),
    }
    torch.manual_seed(draw(st.integers(0, 9)))
    conv = GlobalConv(2, points * draw(st.sampled_from([1, 2, 4, 5])), points=points, **options).eval()
    dtype = draw(DTYPES)
    x = torch.randn(2, 2, draw(st.integers(1, 24)), dtype=dtype)
    conv = conv.to(dtype)
    with torch.no_grad():
        conv(x)
    return conv, x


@FEW
@given(sequences())
def test_structured_kernels(drawn: tuple[nn.Module, Tensor]) -> None:
    # the spectrum of the kernel, and the skip as a column
    assert_rule(FoldConstants(), *drawn, matches=2)
