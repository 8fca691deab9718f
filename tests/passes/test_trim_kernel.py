"""Zeros cut off kernels, against the eager model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldConstants, TrimKernel
from rewrite import optimize
from rewrite.pipeline import Pipeline
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, apply, assert_exact, rewrite

Geometry = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]


def bordered(layer: Any, *borders: tuple[int, int]) -> Any:
    """The layer with so many zeros before and behind the other taps, along each dimension."""
    with torch.no_grad():
        for dim, (low, high) in enumerate(borders, start=2):
            count = layer.weight.shape[dim]
            layer.weight.narrow(dim, 0, low).zero_()
            layer.weight.narrow(dim, count - high, high).zero_()
    return layer


def geometry(result: Result) -> Geometry:
    (layer,) = result.layers
    return layer.kernel, layer.padding


TRIMMED: dict[str, tuple[nn.Module, Geometry, int]] = {
    "even border": (bordered(nn.Conv2d(3, 4, 5, padding=2), (1, 1), (2, 2)), ((3, 1), ((1, 1), (0, 0))), 0),
    "no padding": (bordered(nn.Conv2d(3, 4, 5), (1, 0), (0, 3)), ((4, 2), ((0, 0), (0, 0))), 2),
    "more zeros than padding": (
        bordered(nn.Conv2d(3, 4, 5, padding=(1, 0)), (2, 1), (0, 1)), ((2, 4), ((0, 0), (0, 0))), 2),
    "dilation": (bordered(nn.Conv2d(3, 4, 5, padding=4, dilation=2), (1, 1), (1, 1)), ((3, 3), ((2, 2), (2, 2))), 0),
    "dilation and padding that is no multiple": (
        bordered(nn.Conv2d(3, 4, 5, padding=3, dilation=2), (2, 2), (1, 1)), ((1, 3), ((0, 0), (1, 1))), 1),
    "stride": (bordered(nn.Conv2d(3, 4, 5, 3, padding=2), (1, 1), (0, 0)), ((3, 5), ((1, 1), (2, 2))), 0),
    "padding by name": (
        bordered(nn.Conv2d(3, 4, 4, padding="same"), (0, 1), (1, 1)), ((3, 2), ((1, 1), (0, 1))), 0),
    "uneven border, by as much as can be": (
        bordered(nn.Conv2d(3, 4, 7, padding=3), (2, 1), (0, 0)), ((5, 7), ((2, 2), (3, 3))), 0),
    "reflected border": (
        bordered(nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect"), (1, 0), (0, 1)), ((4, 4), ((0, 0), (0, 0))), 2),
    "groups": (bordered(nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), (1, 1), (0, 0)),
               ((1, 3), ((0, 0), (1, 1))), 0),
    "zeros alone": (bordered(nn.Conv2d(3, 4, 3, padding=1), (3, 0), (0, 0)), ((1, 1), ((0, 0), (0, 0))), 0),
    "zeros alone without padding": (bordered(nn.Conv2d(3, 4, 3), (3, 0), (0, 0)), ((1, 1), ((0, 0), (0, 0))), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", TRIMMED)
def test_the_kernel_becomes_smaller(name: str):
    model, expected, slices = TRIMMED[name]
    x = torch.randn(2, 3, 11, 10)
    result = rewrite(model.eval(), TrimKernel(), x)
    assert len(result.record.commits) == 1
    assert geometry(result) == expected
    assert result.operators.count("slice") == slices
    assert "constant_pad_nd" not in result.operators
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, 3, 11, 10))


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = bordered(kind(2, 3, 4, padding=1), *[(1, 0), (0, 1), (1, 1)][:dims]).eval()
    x = torch.randn(2, 2, *[6, 5, 7][:dims])
    result = rewrite(model, TrimKernel(), x)
    assert len(result.record.commits) == (dims == 3)
    assert_exact(result, model, x)


def causal(length: int, zeros: tuple[int, int], pad: tuple[int, int], **options: int) -> Block:
    """A long causal convolution: the last tap is lag 0."""
    conv = bordered(nn.Conv1d(3, 3, length, groups=3, **options), zeros)
    return Block(lambda self, x: self.conv(F.pad(x, pad)), conv=conv).eval()


@pytest.mark.parametrize(
    ("zeros", "kernel", "operators"),
    [
        ((12, 0), 4, ["constant_pad_nd", "conv1d"]),
        ((15, 0), 1, ["conv1d"]),
        ((12, 2), 2, ["slice", "constant_pad_nd", "conv1d"]),
        ((0, 3), 13, ["slice", "constant_pad_nd", "conv1d"]),
        ((16, 0), 1, ["slice", "constant_pad_nd", "conv1d"]),
    ],
    ids=["long lags", "all but lag 0", "both ends", "short lags", "zeros alone"],
)
def test_the_long_side_of_a_causal_padding_is_cut_too(zeros: tuple[int, int], kernel: int, operators: list[str]):
    model, x = causal(16, zeros, (15, 0)), torch.randn(2, 3, 20)
    result = rewrite(model, TrimKernel(), x)
    assert geometry(result)[0] == (kernel,)
    assert result.operators == operators
    assert_exact(result, model, x)


def test_padding_before_and_in_the_convolution_adds_up():
    model, x = causal(9, (2, 0), (2, 0), padding=1), torch.randn(2, 3, 20)
    result = rewrite(model, TrimKernel(), x)
    assert geometry(result) == ((7,), ((1, 1),))
    assert result.operators == ["conv1d"]
    assert_exact(result, model, x)


KEPT: dict[str, tuple[Any, list[str]]] = {
    "that is read elsewhere": (lambda self, x: (y := F.pad(x, (4, 0)), self.conv(y), y.relu())[1:],
                               ["pad", "slice", "conv1d", "relu"]),
    "of another value": (lambda self, x: self.conv(F.pad(x, (4, 0), value=1.0)), ["pad", "slice", "conv1d"]),
    "of another mode": (lambda self, x: self.conv(F.pad(x, (4, 0), "replicate")), ["pad", "slice", "conv1d"]),
    "of channels": (lambda self, x: self.wide(F.pad(x, (4, 0, 1, 0))), ["pad", "slice", "conv1d"]),
    "that cuts": (lambda self, x: self.conv(F.pad(x, (4, -1))), ["pad", "slice", "conv1d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_padding_stays(name: str):
    layers = {"conv": nn.Conv1d(3, 3, 5), "wide": nn.Conv1d(4, 3, 5)}
    model = Block(KEPT[name][0], **{key: bordered(layer, (2, 0)) for key, layer in layers.items()}).eval()
    x = torch.randn(2, 3, 9)
    result = rewrite(model, TrimKernel(), x)
    assert len(result.record.commits) == 1
    assert result.operators == KEPT[name][1]
    assert_exact(result, model, x)


def reasons(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    result = rewrite(model.eval(), TrimKernel(), x)
    assert not result.record.commits
    return [(refused.reason, refused.remedy) for refused in result.record.refused]


def test_an_uneven_border_is_refused_and_the_remedy_helps():
    conv = bordered(nn.Conv2d(3, 4, 3, padding=1), (1, 0), (0, 0))
    x = torch.randn(2, 3, 6, 6)
    [(reason, remedy)] = reasons(nn.Sequential(conv), x)
    assert reason == "the zeros at the border of its kernel cannot be cut off without uneven padding"
    assert remedy == "add the zeros around the input of conv2d in '0' by F.pad, and set padding=0"
    conv.padding = (0, 0)
    mended = Block(lambda self, x: self.conv(F.pad(x, [1] * 4)), conv=conv).eval()
    result = rewrite(mended, TrimKernel(), x)
    assert geometry(result) == ((2, 3), ((0, 1), (1, 1)))
    assert_exact(result, mended, x)


def test_what_is_not_rebuilt():
    x = torch.randn(2, 3, 6, 6)
    assert [reason for reason, _ in reasons(bordered(nn.ConvTranspose2d(3, 4, 3), (1, 1), (0, 0)), x)] == [
        "the convolution is transposed"
    ]
    assert [reason for reason, _ in reasons(bordered(nn.Conv2d(3, 4, 3), (1, 1), (0, 0)), x[0])] == [
        "the convolution's input has no batch dimension"
    ]
    layer = bordered(nn.Conv2d(3, 4, 3, dtype=torch.complex64), (1, 1), (0, 0))
    assert [reason for reason, _ in reasons(layer, x.to(torch.complex64))] == ["its values are torch.complex64"]


def test_kernels_without_a_border_are_no_misses():
    x = torch.randn(2, 3, 6, 6)
    assert not reasons(nn.Conv2d(3, 4, 3), x)
    inner = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        inner.weight[:, :, 1, 1] = 0
        inner.weight[0, :, 0] = 0
    assert not reasons(inner, x)
    assert not reasons(bordered(nn.Conv2d(3, 4, 1), (1, 0), (0, 0)), x)
    assert not reasons(Block(lambda self, x: F.conv2d(x, x[:2, :, :3, :3] * 0)), x)


def test_the_border_of_computed_weights():
    """A long kernel that is squashed: small taps become zero."""
    kernel = torch.randn(3, 1, 32) * torch.linspace(0.01, 1, 32)
    kernel[..., :8].clamp_(-0.05, 0.05)

    def forward(self: Any, x: Tensor) -> Tensor:
        squashed = self.kernel.sign() * (self.kernel.abs() - 0.1).relu()
        return F.conv1d(F.pad(x, (31, 0)), squashed, groups=3)

    model, x = Block(forward, kernel=kernel).eval(), torch.randn(2, 3, 40)
    result = rewrite(model, TrimKernel(), x)
    assert geometry(result)[0][0] <= 24
    assert_exact(result, model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype):
    model = bordered(nn.Conv2d(3, 4, 5, padding=2), (1, 1), (1, 1)).to(dtype).eval()
    x = torch.randn(2, 3, 8, 7, dtype=dtype)
    found = rewrite(model, TrimKernel(), x).graph.to_module()(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, model(x))


def test_a_zero_tap_no_longer_makes_infinity_missing():
    model = bordered(nn.Conv2d(1, 1, 3, padding=1), (1, 1), (1, 1)).eval()
    x = torch.randn(1, 1, 5, 5)
    x[0, 0, 2, 2] = math.inf
    found, expected = rewrite(model, TrimKernel(), x).graph.to_module()(x), model(x)
    assert expected.isnan().sum() == 8
    assert not found.isnan().any()
    known = expected.isfinite()
    torch.testing.assert_close(found[known], expected[known])


def test_the_model_is_rewritten_anew_when_its_weights_change():
    model = bordered(nn.Conv2d(3, 4, 5, padding=2), (1, 1), (1, 1)).eval()
    x = torch.randn(2, 3, 8, 7)
    fast = optimize(model, x, pipeline=Pipeline((TrimKernel(), FoldConstants())), lower="eager")
    torch.testing.assert_close(fast(x), model(x))
    with torch.no_grad():
        model.weight.normal_()
    torch.testing.assert_close(fast(x), model(x))


def test_folded_weights_are_small():
    model = bordered(nn.Conv2d(3, 4, 5, padding=2), (1, 1), (1, 1)).eval()
    x = torch.randn(2, 3, 8, 7)
    result = rewrite(model, TrimKernel(), x)
    result = apply(result.graph, FoldConstants())
    (layer,) = result.layers
    assert layer.weight.op == "get_attr"
    assert result.graph.weights[layer.weight.target].shape == (4, 3, 3, 3)
    assert_exact(result, model, x)
