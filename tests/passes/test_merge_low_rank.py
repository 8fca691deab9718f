"""Two layers in a row as a part of the layer beside them, against the eager model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes import MergeLinear, MergeLowRank
from rewrite import cost
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import apply, assert_bounded, assert_exact, folded_graph, rewrite

ROWS, IMAGE = (3, 5, 8), (3, 8, 7, 6)


def pair(rank: int = 2, outputs: int = 6, first: bool = True, second: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(8, rank, bias=first), nn.Linear(rank, outputs, bias=second))


def convs(first: Any, second: Any, rank: int = 2, bias: bool = True, groups: tuple[int, int] = (1, 1)) -> nn.Module:
    """Two convolutions of these kernels that keep the size; one or two numbers each."""
    one, two = ((k, k) if isinstance(k, int) else k for k in (first, second))
    return nn.Sequential(
        nn.Conv2d(8, rank, one, padding=tuple(k // 2 for k in one), bias=bias, groups=groups[0]),
        nn.Conv2d(rank, 6, two, padding=tuple(k // 2 for k in two), groups=groups[1]),
    )


def block(forward: Callable[..., Tensor], **parts: nn.Module) -> Block:
    return Block(forward, **parts).eval()


def beside(self: Block, x: Tensor) -> Tensor:
    return self.host(x) + self.a(x)


MERGED: dict[str, tuple[Block, tuple[int, ...], int]] = {
    # model, input, additions that stay
    "adapter": (
        block(lambda self, x: self.host(x) + self.a(x) * 0.25, host=nn.Linear(8, 6), a=pair(2, 6, False, False)),
        ROWS,
        0,
    ),
    "adapter with biases": (block(beside, host=nn.Linear(8, 6, bias=False), a=pair()), ROWS, 0),
    "subtracted and divided": (
        block(lambda self, x: x[..., :6] - self.host(x) - self.a(x) / 4, host=nn.Linear(8, 6), a=pair()), ROWS, 1,
    ),
    "two adapters": (
        block(lambda self, x: self.host(x) + self.a(x) * 2 + self.b(x), host=nn.Linear(8, 6), a=pair(1), b=pair(3)),
        ROWS,
        0,
    ),
    "matrices": (
        block(lambda self, x: x.mm(self.h.weight) + x.mm(self.a.weight).mm(self.b.weight),
              h=nn.Linear(6, 8), a=nn.Linear(2, 8), b=nn.Linear(6, 2)),
        (3, 8),
        0,
    ),
    "kernel before 1x1": (block(beside, host=nn.Conv2d(8, 6, 3, padding=1), a=convs(3, 1)), IMAGE, 0),
    "1x1 before a smaller kernel": (
        block(beside, host=nn.Conv2d(8, 6, 5, padding=2, bias=False), a=convs(1, 3, bias=False)), IMAGE, 0,
    ),
    "separable kernel": (
        block(beside, host=nn.Conv2d(8, 6, 5, padding=2), a=convs((5, 1), (1, 3), bias=False)), IMAGE, 0,
    ),
    "padding of one side": (
        block(beside, host=nn.Conv2d(8, 6, 5, padding=1),
              a=nn.Sequential(nn.Conv2d(8, 2, 2, padding="same", bias=False), nn.Conv2d(2, 6, 3))),
        IMAGE,
        0,
    ),
    "strided": (
        block(beside, host=nn.Conv2d(8, 6, 3, 2, 1),
              a=nn.Sequential(nn.Conv2d(8, 2, 3, 2, 1), nn.Conv2d(2, 6, 1))),
        IMAGE,
        0,
    ),
    "groups": (
        block(beside, host=nn.Conv2d(8, 6, 3, padding=1, groups=2),
              a=convs(1, 3, rank=4, bias=False, groups=(4, 2))),
        IMAGE,
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_the_layer_takes_both(name: str):
    model, shape, additions = MERGED[name]
    x = torch.randn(shape)
    graph = capture(model, (x,)).graph
    before = cost.count(graph)
    result = apply(graph, MergeLowRank())
    assert len(result.record.commits) == 1 + ("two" in name)
    assert len(result.layers) == 1
    assert result.operators.count("add") == additions
    for batch in (3, 1):
        assert_exact(result, model, torch.randn(batch, *shape[1:]))
    after = cost.count(folded_graph(result))
    assert after.flops < before.flops
    assert after.weight_bytes < before.weight_bytes


def test_each_element_errs_as_its_terms_allow():
    model, shape, _ = MERGED["adapter with biases"]
    x = torch.randn(shape)
    assert_bounded(rewrite(model, MergeLowRank(), x), model, x)


def test_an_adapter_by_itself_stays_two_layers():
    model, shape, _ = MERGED["adapter"]
    result = rewrite(model, MergeLinear(), torch.randn(shape))
    assert not result.record.commits
    assert result.reasons[0].startswith("merging would take")


REFUSED: dict[str, tuple[nn.Module, nn.Module, nn.Module, nn.Module, str, str]] = {
    # layer and branch, both mended, reason, remedy
    "border": (
        nn.Conv2d(8, 6, 5, padding=2), convs(1, 3),
        nn.Conv2d(8, 6, 5, padding=2), convs(1, 3, bias=False),
        "the second convolution pads with zeros, which the first one's bias would move",
        "build conv2d in 'a.0' with bias=False",
    ),
    "taps": (
        nn.Conv2d(8, 6, 3, padding=1), convs(1, 5, bias=False),
        nn.Conv2d(8, 6, 5, padding=2), convs(1, 5, bias=False),
        "the branch reads elements that the layer does not",
        "build conv2d in 'host' with a kernel that covers both",
    ),
    "groups": (
        nn.Conv2d(8, 6, 3, padding=1, groups=2), convs(1, 3, bias=False),
        nn.Conv2d(8, 6, 3, padding=1, groups=1), convs(1, 3, bias=False),
        "the layer has groups that the branch connects",
        "build conv2d in 'host' with groups=1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_layer_cannot_hold_is_refused_until_it_is_mended(name: str):
    *parts, reason, remedy = REFUSED[name]
    result = rewrite(block(beside, host=parts[0], a=parts[1]), MergeLowRank(), torch.randn(IMAGE))
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.reason == reason
    assert remedy in refused.remedy
    assert rewrite(block(beside, host=parts[2], a=parts[3]), MergeLowRank(), torch.randn(IMAGE)).record.commits


def test_strides_have_to_agree():
    branch = nn.Sequential(nn.Conv2d(8, 2, 1, stride=2), nn.Conv2d(2, 6, 1))
    model = block(beside, host=nn.Conv2d(8, 6, 4), a=branch)
    result = rewrite(model, MergeLowRank(), torch.randn(3, 8, 7, 7))
    assert result.reasons == ["the branch has the stride (2, 2), the layer (1, 1)"]


def test_weights_of_the_layer_that_others_read_would_be_held_twice():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.host(x) + self.a(x) + self.host(x.relu()).tanh()

    result = rewrite(block(forward, host=nn.Linear(8, 6), a=pair()), MergeLowRank(), torch.randn(ROWS))
    assert not result.record.commits
    assert result.reasons == ["others read the same weights"]


def test_values_that_others_read_are_refused():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.host(x) + self.a[1](y := self.a[0](x)) + y.mean()

    result = rewrite(block(forward, host=nn.Linear(8, 6), a=pair()), MergeLowRank(), torch.randn(ROWS))
    assert not result.record.commits
    assert "is also read elsewhere" in result.reasons[0]


SILENT: dict[str, Block] = {
    "an activation between": block(
        beside, host=nn.Linear(8, 6), a=nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 6))
    ),
    "another input": block(lambda self, x: self.host(x.relu()) + self.a(x), host=nn.Linear(8, 6), a=pair()),
    "no layer": block(lambda self, x: x[..., :6] + self.a(x), a=pair()),
    "a factor of each channel": block(
        lambda self, x: self.host(x) + self.a(x) * x[..., :6], host=nn.Linear(8, 6), a=pair()
    ),
    "twice": block(lambda self, x: (y := self.a(x)) + y + self.host(x), host=nn.Linear(8, 6), a=pair()),
}


@pytest.mark.parametrize("name", SILENT)
def test_other_sums_stay(name: str):
    result = rewrite(SILENT[name], MergeLowRank(), torch.randn(ROWS))
    assert not result.record.commits
    assert not result.record.refused
