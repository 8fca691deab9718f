"""Dilated convolutions over phases, against the eager model and against its strided slices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import SpaceToBatch
from tests.passes.rewriting import apply, assert_exact, rewrite
from tests.programs import Program, aten

TAKEN: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "same size": (nn.Conv2d(3, 5, 3, padding=2, dilation=2), (2, 3, 8, 10)),
    "ragged sizes": (nn.Conv2d(3, 5, 3, padding=3, dilation=3), (2, 3, 7, 11)),
    "no padding": (nn.Conv2d(3, 5, 3, dilation=2), (2, 3, 9, 8)),
    "one output": (nn.Conv2d(3, 5, 3, dilation=3), (2, 3, 7, 7)),
    "padding by name, even kernel": (nn.Conv2d(3, 5, (4, 2), padding="same", dilation=(3, 5)), (2, 3, 9, 7)),
    "one dimension dilated": (nn.Conv2d(3, 5, (3, 4), padding=1, dilation=(2, 1)), (2, 3, 9, 7)),
    "stride along the other dimension": (nn.Conv2d(3, 5, 3, (1, 2), padding=1, dilation=(2, 1)), (2, 3, 9, 7)),
    "dilation of a single tap": (nn.Conv2d(3, 5, (3, 1), (1, 2), dilation=(2, 3)), (2, 3, 9, 7)),
    "padding by name beside": (nn.Conv2d(3, 5, (4, 3), padding="same", dilation=(1, 2)), (2, 3, 9, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4, bias=False), (2, 4, 9, 7)),
    "larger than the image": (nn.Conv2d(3, 5, 3, padding=7, dilation=7), (2, 3, 4, 5)),
    "one-dimensional": (nn.Conv1d(3, 5, 4, padding=5, dilation=4), (2, 3, 19)),
    "three-dimensional": (nn.Conv3d(2, 3, 2, padding=(1, 0, 2), dilation=(1, 2, 3)), (2, 2, 4, 5, 6)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_every_geometry(name: str):
    model, shape = TAKEN[name]
    x = torch.randn(shape)
    result = rewrite(model.eval(), SpaceToBatch(), x)
    assert len(result.record.commits) == 1
    (layer,) = result.layers
    assert all(d == 1 or k == 1 for d, k in zip(layer.dilation, layer.kernel, strict=True))
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, *shape[1:]))
    empty = torch.zeros(0, *shape[1:])
    assert result.graph.to_module()(empty).shape == model(empty).shape


def test_each_phase_is_a_convolution_of_its_own():
    model, x = nn.Conv2d(3, 5, 3, padding=2, dilation=2).eval(), torch.randn(2, 3, 7, 9)
    found = rewrite(model.eval(), SpaceToBatch(), x).graph.to_module()(x)
    for row in range(2):
        for column in range(2):
            phase = F.conv2d(x[:, :, row::2, column::2], model.weight, model.bias, padding=1)
            torch.testing.assert_close(found[:, :, row::2, column::2], phase)


def reasons(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    result = rewrite(model.eval(), SpaceToBatch(), x)
    assert not result.record.commits
    return [(refused.reason, refused.remedy) for refused in result.record.refused]


def test_a_stride_is_refused():
    x = torch.randn(2, 3, 9, 9)
    assert reasons(nn.Conv2d(3, 5, 3, (1, 2), dilation=2), x) == [
        ("the convolution is dilated and strided along one dimension", "set stride=1")
    ]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.ConvTranspose2d(3, 5, 3, dilation=2), "the convolution is transposed"),
        (nn.Conv2d(3, 5, 3, dilation=2, dtype=torch.complex64), "its values are torch.complex64"),
    ],
    ids=["transposed", "complex"],
)
def test_other_layers_are_refused(model: nn.Module, reason: str):
    x = torch.randn(2, 3, 9, 9, dtype=next(model.parameters()).dtype)
    assert [found for found, _ in reasons(model, x)] == [reason]


def test_an_input_without_a_batch_is_refused():
    assert reasons(nn.Conv2d(3, 5, 3, dilation=2), torch.randn(3, 9, 9)) == [
        ("the convolution's input has no batch dimension", "add one with unsqueeze(0)")
    ]


def test_a_size_that_is_not_fixed_is_refused():
    program = Program(dynamic=True)
    x = program(aten.permute.default, program.input(torch.randn(9, 4, 2)), [1, 2, 0])
    conv = program(aten.conv1d.default, x, program.weight("weight", torch.randn(5, 2, 3)), None, [1], [0], [2])
    [refused] = apply(program.graph(conv), SpaceToBatch()).record.refused
    assert refused.reason == "the size of its input is not fixed"


def test_undilated_convolutions_are_no_misses():
    assert not reasons(nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 9, 9))
    assert not reasons(nn.Conv2d(3, 5, 1, dilation=2), torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_returned_output_keeps_its_layout(layout: torch.memory_format):
    model, x = nn.Conv2d(3, 5, 3, dilation=2), torch.randn(2, 3, 9, 8).to(memory_format=layout)
    result = rewrite(model.eval(), SpaceToBatch(), x)
    assert result.graph.to_module()(x).stride() == model(x).stride()
    assert "clone" not in rewrite(nn.Sequential(model, nn.ReLU(), nn.Flatten()).eval(), SpaceToBatch(), x).operators


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_stays_before_it(mode: str):
    model, x = nn.Conv2d(3, 5, 3, padding=2, dilation=2, padding_mode=mode), torch.randn(2, 3, 7, 6)
    result = rewrite(model.eval(), SpaceToBatch(), x)
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)


def test_non_finite_values_go_where_they_went():
    """Also beside the zeros that are added behind the image."""
    model, x = nn.Conv2d(2, 5, 3, padding=2, dilation=3).eval(), torch.randn(1, 2, 9, 10)
    x[0, 0, 0, 0], x[0, 1, 4, 3], x[0, 1, 8, 9] = math.inf, math.nan, -math.inf
    found = rewrite(model.eval(), SpaceToBatch(), x).graph.to_module()(x)
    torch.testing.assert_close(found, model(x), equal_nan=True)


def test_bfloat16():
    model, x = nn.Conv2d(3, 5, 3, padding=2, dilation=2).bfloat16(), torch.randn(2, 3, 7, 6).bfloat16()
    found = rewrite(model.eval(), SpaceToBatch(), x).graph.to_module()(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, model(x))
