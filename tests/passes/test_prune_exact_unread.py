"""Channels that nothing reads, against the eager model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldConstants, RemoveUnreadChannels
from passes.prune_exact import PruneExact
from rewrite import transform
from rewrite.cost import count
from rewrite.driver import Driver
from rewrite.trace import capture
from tests.passes.blocks import Block, conv
from tests.passes.pruning import Forward, kept, norm, pruned, sizes
from tests.passes.rewriting import assert_exact, rewrite, scatter

STEP = RemoveUnreadChannels()
X = torch.randn(2, 4, 7, 5)


class Stack(nn.Module):
    """1x1, depthwise, 1x1: what the parts of an MSBlock go through."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.silu(self.depthwise(F.silu(self.norm(self.expand(x)), inplace=True))))


class MSBlock(nn.Module):
    """The block of YOLO-MS: equal parts of a layer's channels, each joined by what became of the part before."""

    def __init__(self, channels: int, hidden: int, kernels: list[int]) -> None:
        super().__init__()
        self.parts, self.width = len(kernels), hidden // len(kernels)
        self.inside = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.stacks = nn.ModuleList(Stack(self.width, k) if k > 1 else nn.Identity() for k in kernels)
        self.outside = nn.Conv2d(self.width * self.parts, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, results = F.silu(self.norm(self.inside(x)), inplace=True), []
        for i, stack in enumerate(self.stacks):
            part = out[:, i * self.width : (i + 1) * self.width]
            results.append(stack(part + results[-1] if results else part))
        return self.outside(torch.cat(results, 1))


@pytest.mark.parametrize(("hidden", "kernels"), [(11, [1, 3, 3]), (7, [3, 1]), (6, [1, 3])], ids=str)
def test_the_remainder_of_a_division_into_parts(hidden: int, kernels: list[int]):
    model = scatter(MSBlock(4, hidden, kernels))
    x = torch.randn(2, 4, 6, 6)
    result = rewrite(model, STEP, x)
    left = hidden // len(kernels) * len(kernels)
    assert result.layers[0].out_channels == left
    assert result.norms[0].channels == left
    assert len(result.record.commits) == (left < hidden)
    assert not result.record.refused
    assert_exact(result, model, x)
    assert_exact(result, model, x.to(memory_format=torch.channels_last))


READ: dict[str, tuple[list[int], Forward, dict[str, nn.Module]]] = {
    "the first": ([3], lambda s, x: s.a(x)[:, :3].relu(), {"a": conv(4, 6, 3)}),
    "the last": ([2], lambda s, x: s.a(x)[:, -2:].relu(), {"a": conv(4, 6, 3)}),
    "overlapping parts": ([5], lambda s, x: (lambda y: y[:, :3] + y[:, 2:5])(s.a(x).relu()), {"a": conv(4, 8, 3)}),
    "a hole": ([5], lambda s, x: (lambda y: y[:, :3].sum(1) + y[:, 6:].sum(1))(s.a(x)), {"a": conv(4, 8, 3)}),
    "pieces": ([4], lambda s, x: (lambda p: p[0] + p[2])(s.a(x).split(2, 1)), {"a": conv(4, 6, 3)}),
    "unequal pieces": ([5], lambda s, x: s.a(x).split([1, 5], 1)[1].relu(), {"a": conv(4, 6, 3)}),
    "a chunk": ([3], lambda s, x: s.a(x).chunk(2, 1)[1].relu(), {"a": conv(4, 6, 3)}),
    "features": ([3], lambda s, x: F.gelu(s.a(x)[..., 1:4]), {"a": nn.Linear(5, 8)}),
    "nested": ([2], lambda s, x: s.a(x)[:, 1:5].relu()[:, 1:3].sigmoid(), {"a": conv(4, 6, 3)}),
    "transposed": ([3], lambda s, x: s.a(x)[:, :3].relu(), {"a": nn.ConvTranspose2d(4, 6, 3, bias=False)}),
    "of two that are added": ([3, 3], lambda s, x: (s.a(x) + s.b(x))[:, :3].relu(), {
        "a": conv(4, 6, 3), "b": conv(4, 6, 3)}),
    "of two that are joined": ([2, 1], lambda s, x: torch.cat([s.a(x), s.b(x)], 1)[:, 1:4].relu(), {
        "a": conv(4, 3, 3), "b": conv(4, 3, 3)}),
    "behind what runs by channel": ([3], lambda s, x: F.max_pool2d(s.n(s.a(x)).relu(), 2)[:, 3:].relu(), {
        "a": conv(4, 6, 3), "n": norm(6)}),
    "flattened": ([2], lambda s, x: s.a(x).flatten(1)[:, 15:45].relu(), {"a": conv(4, 6, 3)}),
    "equal groups": ([4], lambda s, x: (lambda y: y[:, :2] + y[:, 3:5])(s.a(x)), {"a": conv(4, 6, 3, groups=2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_no_part_reads_is_not_computed(name: str):
    wanted, forward, parts = READ[name]
    assert sizes(pruned(STEP, forward, X, **parts)) == wanted


def test_weights_and_arithmetic_become_less():
    model = Block(lambda s, x: s.b(s.n(s.a(x)).relu()[:, 2:5]), a=conv(4, 9, 3), n=norm(9), b=conv(3, 2, 1)).eval()
    graph = capture(model, (X,)).graph
    before = count(graph)
    Driver(graph).run([STEP, FoldConstants()])
    after = count(graph)
    assert after.weight_bytes < before.weight_bytes
    assert after.flops < before.flops
    assert after.activation_bytes < before.activation_bytes


def test_a_depthwise_convolution_shrinks_with_its_input():
    result = pruned(STEP, lambda s, x: s.b(s.a(x))[:, :3].relu(), X, a=conv(4, 6, 1),
                    b=conv(6, 6, 3, padding=1, groups=6))  # fmt: skip
    assert sizes(result) == [3, 3]
    assert result.layers[1].groups == 3


REFUSED: dict[str, tuple[str, str, Forward, dict[str, nn.Module]]] = {
    "unequal groups": ("the 2 groups of the convolution would be unequal", "conv2d",
                       lambda s, x: s.a(x)[:, :2].relu(), {"a": conv(4, 6, 3, groups=2)}),
    "shared weights": ("'a.weight' is a parameter of conv2d in 'a' too", "conv2d",
                       lambda s, x: s.a(x)[:, :2] + s.a(2 * x).mean(1, keepdim=True), {"a": conv(4, 6, 3)}),
    "transposed with groups": ("the transposed convolution has 2 groups of channels", "conv_transpose2d",
                               lambda s, x: s.a(x)[:, :2].relu(), {"a": nn.ConvTranspose2d(4, 6, 3, groups=2)}),
    "without a batch": ("the convolution's input has no batch dimension", "conv2d",
                        lambda s, x: s.a(x[0])[:, :3].relu(), {"a": conv(4, 6, 3)}),
    "weights from the input": ("the kernel depends on the input", "mul", lambda s, x: F.conv2d(
        x, x.mean() * s.w)[:, :3].relu(), {"w": torch.randn(6, 4, 3, 3)}),
    "returned part": ("the strides of slicing (here) would be others, and the model's result sees them",
                      "slice_",
                      lambda s, x: s.a(x)[:, :2], {"a": conv(4, 6, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_shrink_say_why(name: str):
    reason, culprit, forward, parts = REFUSED[name]
    [found] = kept(STEP, forward, X, **parts)
    assert found[0].startswith(reason)
    assert found[1].startswith(culprit)


SILENT: dict[str, tuple[Forward, dict[str, nn.Module]]] = {
    "everything is read": (lambda s, x: (lambda y: y[:, :3] + y[:, 3:])(s.a(x)), {"a": conv(4, 6, 3)}),
    "a part and everything": (lambda s, x: (lambda y: y[:, :3] + y.mean(1, True))(s.a(x)), {"a": conv(4, 6, 3)}),
    "no layer": (lambda s, x: x[:, :2].relu(), {}),
    "every second channel": (lambda s, x: s.a(x)[:, ::2].relu(), {"a": conv(4, 6, 3)}),
    "rows": (lambda s, x: s.a(x)[:, :, :2].relu(), {"a": conv(4, 6, 3)}),
    "shuffled": (lambda s, x: F.channel_shuffle(s.a(x), 2)[:, :3].relu(), {"a": conv(4, 6, 3)}),
}


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_said_where_nothing_is_unread(name: str):
    forward, parts = SILENT[name]
    assert kept(STEP, forward, X, **parts) == []


def test_what_lies_behind_a_part_of_unknown_size_may_be_read():
    """Behind as many values as the batch has, a part reads another number of channels in each batch."""

    def forward(s: Block, x: Tensor) -> Tensor:
        y, samples = s.a(x.amax(0).flatten(1)), x.flatten(2).amax(2).mT
        return y[:, :1].sum(1) + torch.cat([samples, y], 1)[:, :4].sum(1)

    model = Block(forward, a=nn.Linear(35, 6)).eval()
    result = rewrite(model, STEP, X)
    assert not result.record.commits
    for x in (X, X[:1], torch.randn(5, 4, 7, 5)):
        assert_exact(result, model, x)


def test_returned_parts_are_read_through_a_copy():
    # as the remedy says
    assert sizes(pruned(STEP, lambda s, x: s.a(x)[:, :2].contiguous(), X, a=conv(4, 6, 3))) == [2]


def test_what_lies_between_two_changes_is_built_again():
    """The second sum reads what a layer made of the first: the flow leaves the match and comes back."""

    def forward(s: Block, x: Tensor) -> Tensor:
        y = s.a(x) + s.b(x)
        return s.d(y[:, :3].relu()) + (y + s.c(F.softmax(y[:, 1:3], 1)))[:, 2:5]

    result = pruned(STEP, forward, X, a=conv(4, 8, 3), b=conv(4, 8, 3), c=conv(2, 8, 1), d=conv(3, 3, 1))
    assert sizes(result) == [5, 5, 5, 3]
    assert "softmax" in result.operators


def test_gradients_are_those_of_the_model():
    model = Block(lambda s, x: s.b(s.n(s.a(x)).relu()[:, 2:5]), a=conv(4, 9, 3), n=norm(9), b=conv(3, 2, 1)).double()
    x = X.double()
    fast = transform(model, x, pipeline=STEP)
    fast(x).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_batch_statistics_are_left_alone():
    model = Block(lambda s, x: s.n(s.a(x))[:, :3].relu(), a=conv(4, 6, 3), n=nn.BatchNorm2d(6)).train()
    result = rewrite(model, STEP, X, training=True)
    assert not result.record.commits


def test_only_this_rule_needs_no_weights():
    values: dict[str, bool] = {rule.name: rule.reads_values for rule in PruneExact().rules()}
    assert values == {
        "remove-unread-channels": False,
        "remove-unused-channels": True,
        "remove-dead-channels": True,
        "merge-duplicate-channels": True,
    }
