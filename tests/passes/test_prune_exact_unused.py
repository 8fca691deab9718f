"""Channels that every reader multiplies by zero, against the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes.prune_exact import RemoveUnusedChannels
from tests.passes.blocks import Block, conv
from tests.passes.pruning import Forward, kept, norm, pruned, sizes, unread
from tests.passes.rewriting import rewrite

STEP = RemoveUnusedChannels()
X = torch.randn(2, 3, 8, 6)


def blind(layer: Any = None) -> Any:
    """A layer that reads six channels, and makes nothing of the first and the fifth."""
    return unread(conv(6, 4, 3, padding=1) if layer is None else layer, 0, 4)


REMOVED: dict[str, tuple[list[int], Forward, dict[str, Any]]] = {
    "one reader": ([4, 4], lambda s, x: s.b(F.silu(s.a(x))), {"a": conv(3, 6, 3), "b": blind()}),
    "two readers": ([4, 4, 4], lambda s, x: (lambda y: s.b(y) + s.c(y.sigmoid()))(s.a(x)), {
        "a": conv(3, 6, 3), "b": blind(), "c": unread(conv(6, 4, 1, bias=False), 0, 3, 4)}),
    "two readers with one in common": ([5, 4, 4], lambda s, x: (lambda y: s.b(y) + s.c(y))(s.a(x)), {
        "a": conv(3, 6, 3), "b": blind(conv(6, 4, 1)), "c": unread(conv(6, 4, 1), 0, 1)}),
    "norm and depthwise between": ([4, 4, 4], lambda s, x: s.b(s.d(s.n(s.a(x)).relu())), {
        "a": conv(3, 6, 3), "n": norm(6), "d": conv(6, 6, 3, padding=1, groups=6), "b": blind()}),
    "a sum": ([4, 4, 4], lambda s, x: s.b(s.a(x) + s.c(x)), {
        "a": conv(3, 6, 3), "c": conv(3, 6, 3, bias=False), "b": blind()}),
    "a gate": ([4, 4, 4], lambda s, x: s.b(s.a(x) * s.c(x).sigmoid()), {
        "a": conv(3, 6, 3), "c": conv(3, 6, 3, bias=False), "b": blind()}),
    "a concatenation": ([2, 2, 4], lambda s, x: s.b(torch.cat([s.a(x), s.c(x)], 1)), {
        "a": conv(3, 3, 3), "c": conv(3, 3, 3, bias=False), "b": blind()}),
    "linear": ([4, 4], lambda s, x: s.b(s.a(x)), {"a": nn.Linear(6, 6), "b": blind(nn.Linear(6, 4))}),
    "flattened": ([4, 4], lambda s, x: s.b(s.a(x).flatten(1)), {
        "a": conv(3, 6, (8, 5)), "b": unread(nn.Linear(12, 4), 0, 1, 8, 9)}),
    "transposed": ([4, 4], lambda s, x: s.b(s.a(x)), {
        "a": nn.ConvTranspose2d(3, 6, 3), "b": blind(nn.ConvTranspose2d(6, 4, 3))}),
    "pooled and resized": ([4, 4], lambda s, x: s.b(F.interpolate(F.max_pool2d(s.a(x), 2), scale_factor=2)), {
        "a": conv(3, 6, 3), "b": blind()}),
}  # fmt: skip


@pytest.mark.parametrize("name", REMOVED)
def test_unused_channels_go(name: str):
    wanted, forward, parts = REMOVED[name]
    result = pruned(STEP, forward, X, **parts)
    assert sizes(result) == wanted
    assert not result.record.refused


REFUSED: dict[str, tuple[str, Forward, dict[str, Any]]] = {
    "returned too": ("the model returns the channels of conv2d in 'a'", lambda s, x: (lambda y: (y, s.b(y)))(s.a(x)), {
        "a": conv(3, 6, 3), "b": blind()}),
    "normalized": ("layer_norm normalizes over the channels, so each depends on all of them",
                   lambda s, x: s.b(s.n(s.a(x).permute(0, 2, 3, 1))), {
                       "a": conv(3, 6, 3), "n": nn.LayerNorm(6), "b": blind(nn.Linear(6, 4))}),
    "added to the input": ("no layer makes the channels of input 'args_0'", lambda s, x: s.b(s.a(x) + x), {
        "a": conv(3, 3, 3, padding=1), "b": unread(conv(3, 4, 1), 0)}),
    "called twice": ("'a.weight' is a parameter of conv2d in 'a' too", lambda s, x: s.b(s.a(x)) + s.a(2 * x).mean(), {
        "a": conv(3, 6, 3), "b": blind()}),
    "the last": ("it is the last channel of conv2d in 'a'", lambda s, x: s.b(s.a(x)), {
        "a": conv(3, 1, 3), "b": unread(conv(1, 4, 1), 0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_have_to_stay(name: str):
    reason, forward, parts = REFUSED[name]
    found = kept(STEP, forward, X, **parts)
    if name == "normalized":  # only behind the norm are they unused
        assert found == []
    else:
        assert [refused[0] for refused in found] == [reason]


SILENT: dict[str, tuple[Forward, dict[str, Any]]] = {
    "all are used": (lambda s, x: s.b(s.a(x)), {"a": conv(3, 6, 3), "b": conv(6, 4, 1)}),
    "another reader uses them": (lambda s, x: (lambda y: s.b(y) + s.c(y))(s.a(x)), {
        "a": conv(3, 6, 3), "b": blind(), "c": conv(6, 4, 3, padding=1)}),
    "no layer makes them": (lambda s, x: s.b(x), {"b": unread(conv(3, 4, 1), 0)}),
    "groups": (lambda s, x: s.b(s.a(x)), {"a": conv(3, 6, 3), "b": unread(conv(6, 4, 1, groups=2), 0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_said_of_other_layers(name: str):
    forward, parts = SILENT[name]
    assert kept(STEP, forward, X, **parts) == []


def test_layers_before_lose_what_only_lost_channels_need():
    """The second layer alone reads some channels of the first, for channels that the third does not read."""
    first, second = conv(3, 5, 3), conv(5, 6, 1)
    with torch.no_grad():
        second.weight[[1, 2, 3, 5], 2:4] = 0
    result = pruned(STEP, lambda s, x: s.c(s.b(s.a(x).relu()).relu()), X, a=first, b=second, c=blind())
    assert sizes(result) == [3, 4, 4]


def test_an_infinite_channel_that_is_unused_makes_no_result_infinite():
    model = Block(lambda s, x: s.b(s.a(x).exp()), a=conv(3, 6, 3), b=blind()).eval()
    with torch.no_grad():
        model.a.weight[0] *= 5
    result = rewrite(model, STEP, X)
    assert sizes(result) == [4, 4]
    x = 30 * X
    with torch.no_grad():
        assert model(x).isnan().any()
        assert result.graph.to_module()(x).isfinite().all()


def test_small_weights_are_not_zero():
    layer = blind()
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 1e-40
    assert sizes(pruned(STEP, lambda s, x: s.b(s.a(x)), X, a=conv(3, 6, 3), b=layer)) == [5, 4]
