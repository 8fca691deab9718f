"""Patch embeddings as linear layers, against the eager model and against unfolded patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import PatchesAsLinear
from rewrite.ops import Convolution, Linear
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, apply, assert_exact, rewrite
from tests.programs import Program, aten

TAKEN: dict[str, tuple[nn.Module, tuple[int, ...], PatchesAsLinear]] = {
    "square": (nn.Conv2d(3, 8, 4, 4), (2, 3, 8, 12), PatchesAsLinear()),
    "rectangular without bias": (nn.Conv2d(3, 5, (4, 2), (4, 2), bias=False), (2, 3, 8, 6), PatchesAsLinear()),
    "with a border beyond the last patch": (nn.Conv2d(3, 5, (4, 2), (4, 2)), (2, 3, 11, 7), PatchesAsLinear()),
    "one patch": (nn.Conv2d(3, 5, 4, 4), (2, 3, 4, 5), PatchesAsLinear()),
    "one dimension": (nn.Conv1d(2, 5, 3, 3), (2, 2, 10), PatchesAsLinear()),
    "three dimensions": (nn.Conv3d(2, 5, (1, 2, 3), (1, 2, 3)), (2, 2, 3, 5, 6), PatchesAsLinear()),
    "dilation of a single tap": (nn.Conv2d(3, 5, (2, 1), (2, 1), dilation=(1, 3)), (2, 3, 4, 3), PatchesAsLinear()),
    "padding by name": (nn.Conv2d(3, 5, 2, 2, padding="valid"), (2, 3, 4, 6), PatchesAsLinear()),
    "pointwise": (nn.Conv2d(3, 5, (4, 2), (4, 2)), (2, 3, 9, 6), PatchesAsLinear(pointwise=True)),
    "pointwise groups": (nn.Conv2d(4, 6, (2, 3), (2, 3), groups=2), (2, 4, 5, 6), PatchesAsLinear(pointwise=True)),
    "pointwise depthwise": (nn.Conv1d(4, 4, 2, 2, groups=4), (2, 4, 5), PatchesAsLinear(pointwise=True)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_every_geometry(name: str):
    model, shape, step = TAKEN[name]
    x = torch.randn(shape)
    result = rewrite(model.eval(), step, x)
    assert len(result.record.commits) == 1
    (layer,) = result.layers
    if step.pointwise:
        assert isinstance(layer, Convolution)
        assert set(layer.kernel) == {1}
        assert layer.groups == model.groups
    else:
        assert isinstance(layer, Linear)
    assert_exact(result, model, x)
    for batch in (0, 1, 5):
        assert_exact(result, model, torch.randn(batch, *shape[1:])) if batch else check_empty(result, model, shape)


def check_empty(result: Result, model: nn.Module, shape: tuple[int, ...]) -> None:
    empty = torch.zeros(0, *shape[1:])
    assert result.graph.to_module()(empty).shape == model(empty).shape


@pytest.mark.parametrize("pointwise", [False, True])
def test_channels_go_before_positions(pointwise: bool):
    """The kernel of the layer is that of ``F.unfold``: all positions of a channel, then those of the next one."""
    model = nn.Conv2d(3, 5, (2, 4), (2, 4))
    x = torch.randn(2, 3, 4, 8)
    result = rewrite(model.eval(), PatchesAsLinear(pointwise), x)
    (layer,) = result.layers
    weight = result.graph.value(layer.weight).flatten(1)
    patches = F.unfold(x, (2, 4), stride=(2, 4))
    expected = (weight @ patches).unflatten(2, (2, 2)) + model.bias[:, None, None]
    torch.testing.assert_close(result.graph.to_module()(x), expected)


def reasons(model: nn.Module, x: Tensor, step: Any = None) -> list[tuple[str, str]]:
    result = rewrite(model.eval(), step or PatchesAsLinear(), x)
    assert not result.record.commits
    return [(refused.reason, refused.remedy) for refused in result.record.refused]


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str, str, nn.Module]] = {
    "padding": (nn.Conv2d(3, 5, 2, 2, padding=1), (2, 3, 4, 4), "the convolution pads its input", "set padding=0",
                nn.Conv2d(3, 5, 2, 2, padding=0)),
    "dilation": (nn.Conv2d(3, 5, 2, 2, dilation=2), (2, 3, 6, 6), "the taps of its kernel are apart", "set dilation=1",
                 nn.Conv2d(3, 5, 2, 2, dilation=1)),
    "no batch": (nn.Conv2d(3, 5, 2, 2), (3, 6, 6), "the convolution's input has no batch dimension",
                 "add one with unsqueeze(0)",
                 Block(lambda self, x: self.conv(x.unsqueeze(0)), conv=nn.Conv2d(3, 5, 2, 2))),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_how_it_would_match(name: str):
    model, shape, reason, remedy, mended = REFUSED[name]
    x = torch.randn(shape)
    assert reasons(model, x) == [(reason, remedy)]
    assert len(rewrite(mended.eval(), PatchesAsLinear(), x).record.commits) == 1


def test_groups_need_a_convolution():
    model, x = nn.Conv2d(4, 6, 2, 2, groups=2), torch.randn(2, 4, 4, 4)
    assert reasons(model, x) == [
        (
            "its channels are in 2 groups, and a linear layer has one",
            "write patches-as-linear{pointwise=True}",
        )
    ]


def test_complex_values_are_refused():
    model = nn.Conv2d(3, 5, 2, 2, dtype=torch.complex64)
    [(reason, _)] = reasons(model, torch.randn(2, 3, 4, 4, dtype=torch.complex64))
    assert reason == "its values are torch.complex64"


def test_a_size_that_is_not_fixed_is_refused():
    program = Program(dynamic=True)
    x = program(aten.permute.default, program.input(torch.randn(9, 4, 2)), [1, 2, 0])
    conv = program(aten.conv1d.default, x, program.weight("weight", torch.randn(5, 2, 3)), None, [3])
    [refused] = apply(program.graph(conv), PatchesAsLinear()).record.refused
    assert refused.reason == "the size of its input is not fixed"


@pytest.mark.parametrize(
    "model",
    [nn.Conv2d(3, 5, 3, 2), nn.Conv2d(3, 5, 2, 3), nn.Conv2d(3, 5, 1), nn.ConvTranspose2d(3, 5, 2, 2)],
    ids=["overlapping", "apart", "single tap", "transposed"],
)
def test_other_convolutions_are_no_misses(model: nn.Module):
    assert not reasons(model, torch.randn(2, 3, 7, 7))


def test_a_returned_output_keeps_its_layout():
    model = nn.Conv2d(3, 5, 2, 2)
    for x in (torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6).to(memory_format=torch.channels_last)):
        result = rewrite(model.eval(), PatchesAsLinear(), x)
        assert result.graph.to_module()(x).stride() == model(x).stride()


def test_an_inner_value_is_not_copied():
    model = nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.ReLU(), nn.Flatten())
    assert "clone" not in rewrite(model.eval(), PatchesAsLinear(), torch.randn(2, 3, 4, 6)).operators


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype):
    model, x = nn.Conv2d(3, 5, 2, 2).to(dtype), torch.randn(2, 3, 5, 6, dtype=dtype)
    result = rewrite(model.eval(), PatchesAsLinear(), x)
    found = result.graph.to_module()(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, model(x))


def test_non_finite_values_go_where_they_went():
    model, x = nn.Conv2d(3, 5, 2, 2), torch.randn(1, 3, 6, 6)
    x[0, 0, 0, 0], x[0, 1, 2, 3], x[0, 2, 5, 5] = math.inf, math.nan, -math.inf
    found, expected = rewrite(model.eval(), PatchesAsLinear(), x).graph.to_module()(x), model(x)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_layer_that_is_called_twice():
    conv = nn.Conv2d(3, 3, 2, 2)
    model = Block(lambda self, x: self.conv(self.conv(x)), conv=conv)
    x = torch.randn(2, 3, 8, 8)
    result = rewrite(model.eval(), PatchesAsLinear(), x)
    assert len(result.record.commits) == 2
    assert_exact(result, model, x)


def test_weights_that_depend_on_the_input():
    model = Block(lambda self, x: F.conv2d(x, x[:2, :, :2, :2] * self.scale, None, 2), scale=torch.randn(2, 3, 2, 2))
    x = torch.randn(2, 3, 4, 4)
    result = rewrite(model.eval(), PatchesAsLinear(), x)
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)
