"""Inception mixers merged into one depthwise convolution, against the eager model and its impulse responses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes import MergeSupport, Simplify, SplitSupport
from rewrite.driver import Driver
from rewrite.ops import Convolution
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, apply, assert_exact, rewrite
from tests.passes.supports import depthwise, kernels


def mixer(channels: int, gc: int, band: int = 7, order: str = "qwh", **options: Any) -> Block:
    """The mixer of an InceptionNeXt."""

    def forward(self: Any, x: Tensor) -> Tensor:
        same, *parts = torch.split(x, [channels - len(order) * gc, *[gc] * len(order)], dim=1)
        return torch.cat([same, *(getattr(self, name)(part) for name, part in zip(order, parts, strict=True))], 1)

    near, far = 1, band // 2
    layers = {
        "q": nn.Conv2d(gc, gc, 3, padding=near, groups=gc, **options),
        "w": nn.Conv2d(gc, gc, (1, band), padding=(0, far), groups=gc, **options),
        "h": nn.Conv2d(gc, gc, (band, 1), padding=(far, 0), groups=gc, **options),
    }
    return Block(forward, **{name: layers[name] for name in order}).eval()


@pytest.mark.parametrize("bias", [True, False])
def test_a_mixer_becomes_one_convolution(bias: bool):
    model, x = mixer(16, 3, bias=bias), torch.randn(2, 16, 9, 8)
    result = rewrite(model, MergeSupport(), x)
    assert result.operators == ["conv2d"]
    (layer,) = result.layers
    assert (layer.kernel, layer.groups, layer.bias is None) == ((7, 7), 16, not bias)
    assert_exact(result, model, x)
    impulse = torch.zeros(1, 16, 15, 15)
    impulse[:, :, 7, 7] = 1
    response = (model(impulse) - model(torch.zeros_like(impulse)))[0].flip(1, 2)[:, 4:11, 4:11]
    torch.testing.assert_close(result.graph.value(layer.weight)[:, 0], response)


def test_a_mixer_comes_back_to_the_bit():
    """Split, merged, and split again: the same kernel, and the same branches."""
    model, x = mixer(16, 3), torch.randn(2, 16, 9, 8)
    graph = capture(model, (x,)).graph
    (dense,) = apply(graph, MergeSupport()).layers
    weight, bias = graph.value(dense.weight), graph.value(dense.bias)
    result = apply(graph, SplitSupport())
    assert kernels(result) == [(3, 3), (1, 7), (7, 1)]
    for layer, original in zip(result.layers, (model.q, model.w, model.h), strict=True):
        assert torch.equal(graph.value(layer.weight), original.weight)
        assert torch.equal(graph.value(layer.bias), original.bias)
    assert_exact(result, model, x)
    (again,) = apply(graph, MergeSupport()).layers
    assert torch.equal(graph.value(again.weight), weight)
    assert torch.equal(graph.value(again.bias), bias)


@pytest.mark.parametrize("kinds", [["identity", "square", "row", "column"], ["whole", "row"], ["centre", "whole"]])
def test_a_kernel_comes_back_to_the_bit(kinds: list[str]):
    model = depthwise([kind for kind in kinds for _ in range(2)])
    graph = capture(model, (torch.randn(2, 2 * len(kinds), 9, 8),)).graph
    assert apply(graph, SplitSupport()).record.commits
    (dense,) = apply(graph, MergeSupport()).layers
    assert torch.equal(graph.value(dense.weight), model.weight)
    assert torch.equal(graph.value(dense.bias), model.bias)


def merged(forward: Any, x: Tensor, **layers: nn.Module) -> Result:
    model = Block(forward, **layers).eval()
    graph = capture(model, (x,)).graph
    apply(graph, Simplify())  # x[:, 1:] is a slice of the whole batch, then one of channels
    result = apply(graph, MergeSupport())
    if result.record.commits:
        assert_exact(result, model, x)
    return result


def dw(channels: int, kernel: Any, padding: Any = 0, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, **options)


X = torch.randn(2, 6, 9, 8)

FORMS: dict[str, tuple[Any, dict[str, nn.Module], tuple[int, ...]]] = {
    "slices": (lambda self, x: torch.cat([self.a(x[:, :2]), x[:, 2:3], self.b(x[:, 3:])], 1),
               {"a": dw(2, 3, 1), "b": dw(3, 5, 2)}, (5, 5)),
    "chunks": (lambda self, x: torch.cat([self.a(x.chunk(2, 1)[0]), self.b(x.chunk(2, 1)[1])], 1),
               {"a": dw(3, 3, 1), "b": dw(3, 5, 2)}, (5, 5)),
    "a part of the channels": (lambda self, x: torch.cat([self.a(x[:, 1:3]), self.b(x[:, 3:5])], 1),
                               {"a": dw(2, 3, 1), "b": dw(2, 5, 2)}, (5, 5)),
    "strides": (lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], 1),
                {"a": dw(2, 3, 1, stride=2), "b": dw(4, 5, 2, stride=2)}, (5, 5)),
    "dilation": (lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], 1),
                 {"a": dw(2, 3, 2, dilation=2), "b": dw(4, 5, 4, dilation=2)}, (5, 5)),
    "a dilated branch": (lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], 1),
                         {"a": dw(2, 3, 2, dilation=2), "b": dw(4, 3, 1)}, (5, 5)),
    "no padding": (lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], 1),
                   {"a": dw(2, 3), "b": dw(4, 3)}, (3, 3)),
    "even kernels by name": (lambda self, x: torch.cat([self.a(x[:, :2]), x[:, 2:]], 1),
                             {"a": dw(2, (4, 2), "same")}, (4, 2)),
    "one with a bias": (lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], 1),
                        {"a": dw(2, 3, 1, bias=False), "b": dw(4, 3, 1)}, (3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_mixer(name: str):
    forward, layers, kernel = FORMS[name]
    result = merged(forward, X, **layers)
    assert len(result.record.commits) == 1
    assert kernels(result) == [kernel]


def test_one_dimension():
    layer = nn.Conv1d(2, 2, 3, padding=1, groups=2)
    result = merged(lambda self, x: torch.cat([self.a(x[:, :2]), x[:, 2:]], 1), X[..., 0], a=layer)
    assert result.operators == ["conv1d"]


def in_order(self: Any, x: Tensor) -> Tensor:
    return torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], 1)


def piece_read_twice(self: Any, x: Tensor) -> Tensor:
    piece = x[:, 2:]
    return torch.cat([self.a(x[:, :2]), self.b(piece)], 1) + piece.sum()


APART: dict[str, tuple[Any, dict[str, nn.Module], str]] = {
    "another order": (lambda self, x: torch.cat([self.b(x[:, 2:]), self.a(x[:, :2])], 1),
                      {"a": dw(2, 3, 1), "b": dw(4, 3, 1)}, "the branches are not in the order of their channels"),
    "a gap": (lambda self, x: torch.cat([self.a(x[:, :2]), self.b(x[:, 3:])], 1),
              {"a": dw(2, 3, 1), "b": dw(3, 3, 1)}, "the branches are not in the order of their channels"),
    "strides": (in_order, {"a": dw(2, 3, stride=2), "b": dw(4, (3, 2), stride=(2, 1), dilation=(1, 5))},
                "the branches have different strides, (2, 1) and (2, 2)"),
    "transposed": (in_order, {"a": nn.ConvTranspose2d(2, 2, 3, padding=1, groups=2), "b": dw(4, 3, 1)},
                   "the convolution is transposed"),
    "a piece that is read elsewhere": (piece_read_twice, {"a": dw(2, 3, 1), "b": dw(4, 3, 1)},
                                       "is also read elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_not_merged_says_why(name: str):
    forward, layers, reason = APART[name]
    result = merged(forward, X, **layers)
    assert not result.record.commits
    [found] = result.reasons
    assert reason in found


OTHERS: dict[str, tuple[Any, dict[str, nn.Module]]] = {
    "dense": (lambda self, x: torch.cat([self.a(x[:, :2]), x[:, 2:]], 1), {"a": nn.Conv2d(2, 2, 3, padding=1)}),
    "wider": (lambda self, x: torch.cat([self.a(x[:, :2]), x[:, 2:]], 1),
              {"a": nn.Conv2d(2, 4, 3, padding=1, groups=2)}),
    "another input": (lambda self, x: torch.cat([self.a(x[:, :2]), x.relu()[:, 2:]], 1), {"a": dw(2, 3, 1)}),
    "another dimension": (lambda self, x: torch.cat([self.a(x[:, :2]), x[:, :2]], 2), {"a": dw(2, 3, 1)}),
    "activated": (lambda self, x: torch.cat([self.a(x[:, :2]).relu(), x[:, 2:]], 1), {"a": dw(2, 3, 1)}),
    "every second channel": (lambda self, x: torch.cat([self.a(x[:, ::3]), x[:, 2:]], 1), {"a": dw(2, 3, 1)}),
    "no convolution": (lambda self, x: torch.cat([x[:, :2], x[:, 2:]], 1), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_concatenations_are_no_misses(name: str):
    forward, layers = OTHERS[name]
    result = merged(forward, X, **layers)
    assert not result.record.commits
    assert not result.reasons


def test_weights_that_depend_on_the_input_are_refused():
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([torch.conv2d(x[:, :2], x[:2, :1, :3, :3], padding=1, groups=2), x[:, 2:]], 1)

    [reason] = merged(forward, X).reasons
    assert reason == "the kernel depends on the input"


def test_a_step_of_simplify_leaves_the_mixer_alone():
    model, x = mixer(16, 3), torch.randn(2, 16, 9, 8)
    graph = capture(model, (x,)).graph
    Driver(graph).run([MergeSupport()])
    result = apply(graph, Simplify())
    assert isinstance(result.layers[0], Convolution)
    assert_exact(result, model, x)
