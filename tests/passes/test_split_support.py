"""Depthwise convolutions split by the taps that channels use, against the eager model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import SplitSupport, registry
from rewrite.errors import PipelineError
from tests.passes.blocks import Block
from tests.passes.rewriting import assert_exact, rewrite
from tests.passes.supports import depthwise, kernels


def test_the_parts_of_an_inception_mixer():
    model = depthwise(["identity"] * 3 + ["square"] * 2 + ["row"] * 2 + ["column"] * 2)
    x = torch.randn(2, 9, 8, 9)
    result = rewrite(model, SplitSupport(), x)
    assert result.operators.count("conv2d") == 3
    assert kernels(result) == [(3, 3), (1, 5), (7, 1)]
    assert "index_select" not in result.operators
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, 9, 8, 9))


def test_channels_in_any_order_and_all_parts():
    model = depthwise(["row", "identity", "whole", "row", "centre", "square", "column", "identity", "whole"])
    x = torch.randn(2, 9, 8, 9)
    result = rewrite(model, SplitSupport(), x)
    assert kernels(result) == [(1, 5), (7, 5), (1, 1), (3, 3), (7, 1)]
    assert result.operators.count("index_select") == 2
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, 9, 8, 9))


def test_an_identity_keeps_its_bias():
    model = depthwise(["identity", "identity", "row", "row"])
    with torch.no_grad():
        model.bias[1] = 0.5
    x = torch.randn(2, 4, 8, 9)
    result = rewrite(model, SplitSupport(), x)
    assert kernels(result) == [(1, 1), (1, 5)]
    assert_exact(result, model, x)


def test_without_bias():
    model = depthwise(["identity", "row", "square"], bias=False)
    x = torch.randn(2, 3, 8, 9)
    result = rewrite(model, SplitSupport(), x)
    assert kernels(result) == [(1, 5), (3, 3)]
    assert all(layer.bias is None for layer in result.layers)
    assert_exact(result, model, x)


def test_supports_are_as_tight_as_their_taps():
    model = depthwise(["column", "column", "whole"], (9, 3))
    with torch.no_grad():
        model.weight[:2, :, :2] = 0
        model.weight[:2, :, 7:] = 0
        model.weight[1, :, 2] = 0
    result = rewrite(model, SplitSupport(), torch.randn(2, 3, 9, 9))
    assert kernels(result) == [(5, 1), (9, 3)]


GEOMETRIES: dict[str, dict[str, Any]] = {
    "stride": {"stride": 2},
    "dilation": {"dilation": 2, "padding": (6, 4)},
    "no padding": {"padding": 0},
    "less padding": {"padding": (1, 1)},
    "more padding": {"padding": (4, 3)},
    "padding beside the taps": {"dilation": 2, "padding": (5, 3)},
    "even kernel": {"kernel": (6, 4), "padding": (3, 2)},
    "even kernel, padding by name": {"kernel": (6, 4), "padding": "same"},
    "circular": {"padding_mode": "circular"},
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry(name: str):
    options = dict(GEOMETRIES[name])
    kernel = options.pop("kernel", (7, 5))
    named = options.get("padding") == "same"
    base = {**options, "padding": tuple((k - 1) // 2 for k in kernel)} if named else options
    base = {**base, "padding": (base["padding"],) * 2} if isinstance(base.get("padding"), int) else base
    model = depthwise(["row", "square", "identity", "column", "whole"], kernel, **base)
    model.padding = "same" if named else model.padding
    x = torch.randn(2, 5, 15, 16)
    result = rewrite(model, SplitSupport(), x)
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)


def test_a_stride_leaves_no_channel_as_it_is():
    model = depthwise(["identity", "row", "row"], stride=2)
    result = rewrite(model, SplitSupport(), torch.randn(2, 3, 9, 9))
    assert kernels(result) == [(1, 1), (1, 5)]


def test_the_square_can_be_larger():
    model = depthwise(["whole", "whole", "row"], (7, 7))
    with torch.no_grad():
        model.weight[0, :, [0, 6]] = 0
        model.weight[0, :, :, [0, 6]] = 0
    x = torch.randn(2, 3, 9, 9)
    assert kernels(rewrite(model, SplitSupport(), x)) == [(7, 7), (1, 7)]
    result = rewrite(model, SplitSupport(square=5), x)
    assert kernels(result) == [(5, 5), (7, 7), (1, 7)]
    assert_exact(result, model, x)
    text = "split-support{square=5}"
    assert str(registry().parse(text)) == text
    for wrong in (0, 4):
        with pytest.raises(PipelineError, match=f"square is {wrong}; give an odd number"):
            SplitSupport(square=wrong)


def reasons(model: nn.Module, x: Tensor) -> list[str]:
    result = rewrite(model.eval(), SplitSupport(), x)
    assert not result.record.commits
    return result.reasons


def test_what_is_no_split():
    x = torch.randn(2, 4, 9, 9)
    assert not reasons(nn.Conv2d(4, 4, 3, padding=1, groups=4), x)
    assert not reasons(depthwise(["row"] * 4), x)
    assert not reasons(depthwise(["identity"] * 4), x)
    dense = nn.Conv2d(4, 4, 3, padding=1)
    multiplied = nn.Conv2d(4, 8, 3, padding=1, groups=4)
    for layer in (dense, multiplied):
        with torch.no_grad():
            layer.weight[0, :, 0] = 0
            layer.weight[0, :, 2] = 0
        assert not reasons(layer, x)
    assert not reasons(nn.ConvTranspose2d(4, 4, 3, groups=4), x)


def test_what_is_refused():
    model = depthwise(["row", "whole", "square", "identity"])
    assert reasons(model, torch.randn(4, 9, 9)) == ["the convolution's input has no batch dimension"]
    moving = Block(
        lambda self, x: torch.conv2d(x, self.conv.weight, x[0, :, 0, 0], padding=(3, 2), groups=4), conv=model
    )
    assert reasons(moving, torch.randn(2, 4, 9, 9)) == ["the bias depends on the input"]


def test_channels_that_are_cut_alike_are_one_branch():
    """The upper half of the square is cut only as far as torch can pad it, which is not at all."""
    conv = nn.Conv2d(2, 2, 3, padding=(1, 0), groups=2).eval()
    with torch.no_grad():
        conv.weight[0, 0, 0] = 0
    assert not reasons(conv, torch.randn(2, 2, 9, 9))
    with torch.no_grad():
        conv.weight[0, 0, 2] = 0
    assert kernels(rewrite(conv, SplitSupport(), torch.randn(2, 2, 9, 9))) == [(1, 3), (3, 3)]


def test_behind_a_padding_the_middle_is_the_centre():
    model = depthwise(["row", "column", "identity"], padding=0)
    with torch.no_grad():
        model.weight.copy_(depthwise(["row", "column", "identity"]).weight)
    for mode in ("constant", "reflect", "replicate", "circular"):
        padded = Block(lambda self, x, mode=mode: self.conv(F.pad(x, (2, 2, 3, 3), mode)), conv=model).eval()
        x = torch.randn(2, 3, 8, 9)
        result = rewrite(padded, SplitSupport(), x)
        assert kernels(result) == [(1, 5), (7, 1), (1, 1)]
        assert_exact(result, padded, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype):
    model = depthwise(["row", "identity", "row", "square"]).to(dtype)
    x = torch.randn(2, 4, 9, 8, dtype=dtype)
    found = rewrite(model, SplitSupport(), x).graph.to_module()(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, model(x))


def test_a_zero_tap_no_longer_makes_infinity_missing():
    model = depthwise(["identity", "row", "whole"])
    x = torch.randn(1, 3, 9, 9)
    x[:, :, 4, 4] = math.inf
    found, expected = rewrite(model, SplitSupport(), x).graph.to_module()(x), model(x)
    assert found[0, 0].isinf().sum() == 1
    assert not found[0, 0].isnan().any()
    assert expected[0, 0].isnan().any()
    known = expected.isfinite()
    torch.testing.assert_close(found[known], expected[known])
