"""Few different filters as a depthwise and a pointwise convolution, against the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FilterBasis, FoldConstants
from rewrite.offering import offers_in
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, apply, assert_exact, rewrite

DOUBLE = torch.float64


def plant(conv: Any, rank: int, shared: bool = False) -> Any:
    """The convolution with filters from a basis of ``rank`` for each input channel, or of one for all of them."""
    groups, (out, channels, *kernel) = conv.groups, conv.weight.shape
    basis = torch.randn(*(1, 1) if shared else (groups, channels), rank, *kernel, dtype=DOUBLE)
    basis = basis.expand(groups, channels, *basis.shape[2:])
    mix = torch.randn(groups, out // groups, channels, rank, dtype=DOUBLE) / conv.weight[0].numel() ** 0.5
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("gcr...,gocr->goc...", basis, mix).reshape(conv.weight.shape))
    return conv.eval()


def shapes(result: Result) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.meta["val"].shape) for layer in result.layers]


TAKEN: dict[str, tuple[nn.Module, int, list[tuple[int, ...]]]] = {
    "dense": (nn.Conv2d(6, 16, 3, padding=1), 2, [(12, 1, 3, 3), (16, 12, 1, 1)]),
    "one filter": (nn.Conv2d(6, 8, 3, padding=1, bias=False), 1, [(6, 1, 3, 3), (8, 6, 1, 1)]),
    "groups": (nn.Conv2d(6, 12, (2, 5), padding=1, groups=2), 2, [(12, 1, 2, 5), (12, 6, 1, 1)]),
    "depthwise with more outputs": (nn.Conv2d(6, 24, 3, padding=1, groups=6), 1, [(6, 1, 3, 3), (24, 1, 1, 1)]),
    "stride, dilation": (nn.Conv2d(6, 8, 3, (2, 1), (2, 0), (1, 2)), 1, [(6, 1, 3, 3), (8, 6, 1, 1)]),
    "padding by name": (nn.Conv2d(6, 8, (4, 3), padding="same"), 1, [(6, 1, 4, 3), (8, 6, 1, 1)]),
    "circular": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), 1, [(6, 1, 3, 3), (8, 6, 1, 1)]),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_every_geometry(name: str, shared: bool):
    layer, rank, expected = TAKEN[name]
    model, x = plant(layer.double(), rank, shared), torch.randn(2, 6, 9, 11, dtype=DOUBLE)
    result = rewrite(model, FilterBasis(), x)
    assert shapes(result) == expected
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, 6, 9, 11))
    assert [layer.bias is None for layer in result.layers] == [True, model.bias is None]


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = plant(kind(4, 6, 3, padding=1).double(), 1)
    x = torch.randn(2, 4, *[7, 6, 5][:dims], dtype=DOUBLE)
    result = rewrite(model, FilterBasis(), x)
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_up_to_rounding(dtype: torch.dtype):
    model, x = plant(nn.Conv2d(6, 16, 3, padding=1).to(dtype), 2), torch.randn(2, 6, 9, 8, dtype=dtype)
    result = rewrite(model, FilterBasis(), x)
    assert shapes(result) == [(12, 1, 3, 3), (16, 12, 1, 1)]
    truth = F.conv2d(x.double(), model.weight.double(), model.bias.double(), padding=1)
    folded = apply(result.graph, FoldConstants()).graph.to_module()(x)
    assert folded.dtype == dtype
    assert (folded.double() - truth).norm() <= 16 * torch.finfo(dtype).eps / 2 * truth.norm()


def reasons(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    result = rewrite(model.eval(), FilterBasis(), x)
    assert not result.record.commits
    return [(refused.reason, refused.remedy) for refused in result.record.refused]


def test_filters_of_high_rank_are_refused_with_numbers():
    model, x = nn.Conv2d(6, 16, 3, padding=1), torch.randn(2, 6, 9, 8)
    [(reason, remedy)] = reasons(model, x)
    assert reason == (
        "its filters over an input channel have rank 9, and with a basis of 9 there are 225 multiply-accumulates for "
        "each of them and position instead of 144"
    )
    assert remedy == "train it with filters of rank 5 at most"
    assert len(rewrite(plant(model, 5), FilterBasis(), x).record.commits) == 1
    assert not rewrite(plant(model, 6), FilterBasis(), x).record.commits


def test_one_input_channel_of_full_rank_decides():
    model = plant(nn.Conv2d(6, 16, 3, padding=1), 1)
    with torch.no_grad():
        model.weight[:, 2].normal_(std=1e-3)
    assert reasons(model, torch.randn(2, 6, 9, 8))


def test_other_layers_are_no_misses():
    x = torch.randn(2, 4, 6, 6)
    for layer in (nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 8, 3)):
        assert not reasons(layer, x)


def test_what_is_refused():
    x = torch.randn(2, 4, 6, 6)
    infinite = nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        infinite.weight[0, 0, 0, 0] = torch.nan
    assert [reason for reason, _ in reasons(infinite, x)] == ["its kernel is infinite or NaN"]
    assert [reason for reason, _ in reasons(nn.Conv2d(4, 4, 3), x[0])] == [
        "the convolution's input has no batch dimension"
    ]
    moving = Block(lambda self, x: F.conv2d(x, x[:, :, :3, :3]))
    assert [reason for reason, _ in reasons(moving, x)] == ["the kernel depends on the input"]


def test_what_it_makes_is_no_miss():
    """Its depthwise convolution has as many outputs as its basis has filters, for each channel."""
    model = plant(nn.Conv2d(6, 16, 3, padding=1), 2)
    assert not rewrite(model, FilterBasis(), torch.randn(2, 6, 9, 8)).record.refused


def test_the_cost_is_what_is_offered():
    graph = capture(plant(nn.Conv2d(6, 16, 3, padding=1), 2), (torch.randn(2, 6, 9, 8),)).graph
    [offer] = offers_in(graph, [FilterBasis()], MatchVerifier())
    assert offer.before.flops == 2 * 72 * 6 * 16 * 9
    assert offer.after.flops == 2 * 72 * 6 * 2 * (9 + 16)
