"""Layers over one input as one, against the eager model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import MergeSelection, MergeSiblings, Simplify
from rewrite import cost
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import apply, assert_exact, folded_graph, rewrite
from tests.programs import Program, aten

Forward = Callable[..., Any]
IMAGE, ROWS = (3, 8, 6, 5), (3, 5, 8)


def block(forward: Forward, **parts: nn.Module) -> Block:
    return Block(forward, **parts).eval()


def conv(*args: Any, **options: Any) -> nn.Module:
    return nn.Conv2d(*args, **options)


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(self: Block, x: Tensor) -> Tensor:
    q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def plain_attention(self: Block, x: Tensor) -> Tensor:
    q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def pixel_attention(self: Block, x: Tensor) -> Tensor:
    q, k, v = (part(x).flatten(2).unflatten(1, (2, -1)) for part in (self.q, self.k, self.v))
    return ((q.transpose(-2, -1) @ k).softmax(-1) @ v.transpose(-2, -1)).relu()


MERGED: dict[str, tuple[Block, tuple[int, ...], int]] = {
    # model, input, siblings
    "attention": (
        block(attention, q=nn.Linear(8, 8), k=nn.Linear(8, 8, bias=False), v=nn.Linear(8, 6)),
        ROWS,
        3,
    ),
    "attention by products": (
        block(plain_attention, q=nn.Linear(8, 4), k=nn.Linear(8, 4), v=nn.Linear(8, 6)),
        ROWS,
        3,
    ),
    "attention of pixels": (
        block(pixel_attention, q=conv(8, 4, 1), k=conv(8, 4, 1), v=conv(8, 6, 1, bias=False)),
        IMAGE,
        3,
    ),
    "inception": (
        block(
            lambda self, x: torch.cat([self.a(x).relu(), F.max_pool2d(x, 3, 1, 1), self.b(x).relu()], 1),
            a=conv(8, 3, 1), b=conv(8, 2, 1),
        ),
        IMAGE,
        2,
    ),
    "gated linear unit": (
        block(lambda self, x: F.silu(self.a(x)) * self.b(x), a=nn.Linear(8, 6, False), b=nn.Linear(8, 6, False)),
        ROWS,
        2,
    ),
    "matrices": (
        block(lambda self, x: torch.mm(x, self.a.weight).relu() + torch.addmm(self.b.bias, x, self.b.weight),
              a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        (5, 8),
        2,
    ),
    "strided and dilated kernels": (
        block(
            lambda self, x: self.a(x).relu().mean((2, 3)) + self.b(x).amax((2, 3)),
            a=conv(8, 4, (3, 2), stride=2, padding=(1, 2), dilation=(1, 2)),
            b=conv(8, 4, (3, 2), stride=2, padding=(1, 2), dilation=(1, 2), bias=False),
        ),
        IMAGE,
        2,
    ),
    "padding='same'": (
        block(lambda self, x: self.a(x).relu() + self.b(x).sigmoid(),
              a=conv(8, 4, 2, padding="same"), b=conv(8, 4, 2, padding="same")),
        IMAGE,
        2,
    ),
    "transposed": (
        block(
            lambda self, x: self.a(x).relu().sum((2, 3), keepdim=True) * self.b(x),
            a=nn.ConvTranspose2d(8, 1, 2, stride=2), b=nn.ConvTranspose2d(8, 2, 2, stride=2),
        ),
        IMAGE,
        2,
    ),
    "one dimension": (
        block(lambda self, x: self.a(x).tanh() * self.b(x).sigmoid(), a=nn.Conv1d(8, 4, 3), b=nn.Conv1d(8, 4, 3)),
        (3, 8, 9),
        2,
    ),
    "some are chosen": (  # what the third one feeds would copy more than reading the input again costs
        block(lambda self, x: self.a(x).relu() + self.b(x).relu() + self.d(self.c(x)),
              a=conv(8, 4, 1), b=conv(8, 4, 1), c=conv(8, 9, 1), d=conv(9, 4, 1)),
        IMAGE,
        2,
    ),
    "a small piece is copied": (
        block(lambda self, x: self.d(self.a(x)) + self.b(x), a=conv(8, 2, 1), b=conv(8, 4, 1), d=conv(2, 4, 1)),
        IMAGE,
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_siblings_become_one_layer(name: str):
    model, shape, siblings = MERGED[name]
    x = torch.randn(shape)
    graph = capture(model, (x,)).graph
    before = cost.count(graph)
    result = apply(graph, MergeSiblings(convolutions=True))
    assert len(result.record.commits) == 1
    assert result.operators.count("split_with_sizes") == 1
    assert_exact(result, model, x)
    for batch in (1, 4):
        assert_exact(result, model, torch.randn(batch, *shape[1:]))
    after = cost.count(folded_graph(result))
    assert after.weight_bearing == before.weight_bearing - siblings + 1
    assert after.flops == before.flops


@pytest.mark.parametrize("name", ["attention", "inception"])
def test_an_empty_batch_runs(name: str):
    model, shape, _ = MERGED[name]
    result = rewrite(model, MergeSiblings(convolutions=True), torch.randn(shape))
    x = torch.randn(0, *shape[1:])
    assert result.graph.to_module()(x).shape == model(x).shape


def test_inputs_in_channels_last():
    model, shape, _ = MERGED["inception"]
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    result = rewrite(model, MergeSiblings(convolutions=True), x)
    assert result.record.commits
    assert result.graph.to_module()(x).stride() == model(x).stride()
    assert_exact(result, model, x)


def test_pieces_that_are_concatenated_in_order_are_no_pieces():
    model = block(lambda self, x: torch.cat([self.b(x), self.a(x)], 1), a=conv(8, 3, 1), b=conv(8, 2, 1))
    x = torch.randn(IMAGE)
    result = rewrite(model, MergeSiblings(convolutions=True), x)
    assert result.operators == ["conv2d", "split_with_sizes", "cat"]
    result = apply(result.graph, Simplify())
    assert [op for op in result.operators if op != "sym_size"] == ["conv2d"]
    assert_exact(result, model, x)


def test_a_selective_convolution_reads_its_input_once():
    def forward(self: Block, x: Tensor, gate: Tensor) -> Tensor:
        return gate * self.a(x) + (1 - gate) * self.b(x)

    model = block(forward, a=conv(8, 4, 3, padding=1), b=conv(8, 4, 3, padding=1))
    args = (torch.randn(IMAGE), torch.rand(3, 1, 6, 5))
    graph = rewrite(model, MergeSelection(), *args).graph
    result = apply(graph, MergeSiblings(convolutions=True))
    assert result.operators == ["conv2d", "split_with_sizes", "lerp"]
    assert_exact(result, model, *args)


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_what_the_model_returns_is_dense_and_shares_nothing():
    model = block(lambda self, x: (self.a(x), self.b(x), self.c(x).relu()),
                  a=conv(8, 2, 1), b=conv(8, 1, 1), c=conv(8, 7, 1))  # fmt: skip
    x = torch.randn(IMAGE)
    result = rewrite(model, MergeSiblings(convolutions=True), x)
    assert len(result.record.commits) == 1
    assert result.operators == ["conv2d", "split_with_sizes", "clone", "clone", "relu"]
    found, expected = result.graph.to_module()(x), model(x)
    assert [y.stride() for y in found] == [y.stride() for y in expected]
    assert len({y.untyped_storage().data_ptr() for y in found}) == 3
    assert_exact(result, model, x)


def test_views_that_the_model_returns_are_dense_too():
    model = block(lambda self, x: (self.a(x)[:, :1], self.b(x).relu()), a=conv(8, 2, 1), b=conv(8, 7, 1))
    x = torch.randn(IMAGE)
    result = rewrite(model, MergeSiblings(convolutions=True), x)
    assert "clone" in result.operators
    assert [y.stride() for y in result.graph.to_module()(x)] == [y.stride() for y in model(x)]


def test_operators_that_depend_on_strides_find_those_that_they_had():
    def forward(self: Block, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.a(x)).abs() + self.b(x).relu()[..., 0]

    model = block(forward, a=nn.Linear(20, 2), b=nn.Linear(20, 3))
    x = torch.randn(3, 5, 20)
    result = rewrite(model, MergeSiblings(convolutions=True), x)
    assert len(result.record.commits) == 1
    assert "clone" in result.operators
    assert_exact(result, model, x)


# -- what is refused ---------------------------------------------------------------------------------------------------


def refusal(model: Block, x: Tensor) -> tuple[str, str, str]:
    result = rewrite(model, MergeSiblings(convolutions=True), x)
    assert not result.record.commits
    [refused] = result.record.refused
    return refused.reason, refused.culprit.split("'")[1], refused.remedy


def test_copies_that_cost_more_than_they_save_are_refused_with_both_counts():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.d(self.c(self.a(x))) + self.b(x)

    parts = {"a": conv(8, 4, 1), "b": conv(8, 5, 1), "d": conv(4, 5, 3, padding=1)}
    x = torch.randn(IMAGE)
    assert refusal(block(forward, c=nn.Identity(), **parts), x) == (
        f"merging would save reading {8 * 30 * 4} bytes and copy {2 * 4 * 30 * 4} bytes of strided pieces",
        "conv2d_1",
        "give conv2d in 'd' what an elementwise operator makes of it",
    )
    assert rewrite(block(forward, c=nn.ReLU(), **parts), MergeSiblings(convolutions=True), x).record.commits


COPIES: dict[str, tuple[Forward, bool]] = {
    # what reads a piece, and whether that copies it
    "a reshape that splits": (lambda y: y.unflatten(2, (2, 4)).relu(), False),
    "a reshape that joins": (lambda y: y.flatten(1).cumsum(1).relu(), True),
    "a reshape that joins behind a view": (lambda y: y.transpose(1, 2)[:, :, :2].flatten(1).relu(), False),
    "a row-wise product": (lambda y: F.linear(y, y.new_ones(3, 8)), False),
    "a norm": (lambda y: F.layer_norm(y, (8,)).relu(), True),
    "a reduction": (lambda y: y.amax(1).relu(), False),
    "softmaxes of parts": (lambda y: sum(part.softmax(-1) for part in y.split(4, -1)), True),
    "a softmax of a part": (lambda y: y.split(4, -1)[1].softmax(-1), False),
    "a learned slope": (lambda y: F.prelu(y, y.new_ones(5)), False),
    "nothing but its size": (lambda y: y.new_ones(5, 8) * y.shape[0], False),
}


@pytest.mark.parametrize("name", COPIES)
def test_operators_that_need_dense_values_count_as_copies(name: str):
    read, copies = COPIES[name]
    model = block(lambda self, x: (read(self.a(x)), self.b(x).relu()), a=nn.Linear(12, 8), b=nn.Linear(12, 8))
    result = rewrite(model, MergeSiblings(convolutions=True), torch.randn(3, 5, 12))
    assert bool(result.record.commits) == (not copies)
    assert [reason.startswith("merging would save") for reason in result.reasons] == [True] * copies


def test_two_returned_values_that_would_be_copied_are_refused():
    reason, culprit, remedy = refusal(
        block(lambda self, x: (self.a(x), self.b(x)), a=conv(8, 4, 1), b=conv(8, 5, 1)), torch.randn(IMAGE)
    )
    assert (
        reason == f"merging would save reading {8 * 30 * 4} bytes and copy {2 * 9 * 30 * 4:,} bytes of strided pieces"
    )
    assert culprit == "output"
    assert remedy == "give the model's caller what an elementwise operator makes of it"


def test_kernels_of_different_sizes_are_refused_with_both_counts():
    def build(kernel: int) -> Block:
        return block(lambda self, x: self.a(x).relu() + self.b(x).relu(),
                     a=conv(8, 4, kernel, padding=kernel // 2), b=conv(8, 4, 3, padding=1))  # fmt: skip

    x = torch.randn(IMAGE)
    assert refusal(build(1), x) == (
        f"one kernel of 9 taps would take {2 * 30 * 8 * 8 * 9:,} FLOPs instead of {2 * 30 * 8 * 4 * 10:,}",
        "conv2d",
        "",
    )
    assert rewrite(build(3), MergeSiblings(convolutions=True), x).record.commits


DIFFERENT: dict[str, tuple[nn.Module, nn.Module, str]] = {
    "strides": (conv(8, 4, 3), conv(8, 4, 3, stride=2), "the strides differ, (1, 1) and (2, 2)"),
    "padding": (conv(8, 4, 3), conv(8, 4, 3, padding=1), "the convolutions pad or dilate differently"),
    "dilation": (conv(8, 4, 3), conv(8, 4, 3, dilation=2), "the convolutions pad or dilate differently"),
    "groups": (
        conv(8, 4, 3, groups=2),
        conv(8, 4, 3, groups=2),
        "the outputs of its groups would not lie together in the merged result",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_windows_and_groups_are_refused(name: str):
    a, b, reason = DIFFERENT[name]
    model = block(lambda self, x: self.a(x).relu().mean((2, 3)) + self.b(x).relu().mean((2, 3)), a=a, b=b)
    result = rewrite(model, MergeSiblings(convolutions=True), torch.randn(IMAGE))
    assert not result.record.commits
    assert set(result.reasons) == {reason}


def test_weights_that_others_read_would_be_held_twice():
    model = block(lambda self, x: self.a(x).relu() + self.b(x).relu() + self.a(x.relu()),
                  a=nn.Linear(8, 8), b=nn.Linear(8, 8))  # fmt: skip
    reason, _, remedy = refusal(model, torch.randn(ROWS))
    assert reason == "others read its weights too, which would be held twice"
    assert remedy == "give linear in 'a' weights of its own"


def test_a_kernel_that_depends_on_the_input_is_refused():
    model = block(lambda self, x: F.linear(x, self.a.weight * x.mean()).relu() + self.b(x).relu(),
                  a=nn.Linear(8, 8), b=nn.Linear(8, 8))  # fmt: skip
    assert refusal(model, torch.randn(ROWS))[0] == "the kernel depends on the input"


SILENT: dict[str, Block] = {
    "one layer": block(lambda self, x: self.a(x).relu() + x, a=nn.Linear(8, 8)),
    "one behind the other": block(lambda self, x: self.b(self.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
    "different inputs": block(
        lambda self, x: self.a(x).relu() + self.b(x.relu()), a=nn.Linear(8, 8), b=nn.Linear(8, 8)
    ),
    "a depthwise one beside a dense one": block(
        lambda self, x: self.a(x).mean() + self.b(x).relu(), a=nn.Conv1d(5, 5, 3, groups=5), b=nn.Conv1d(5, 5, 1)
    ),
    "a convolution beside a linear layer": block(
        lambda self, x: self.a(x).relu() + self.b(x).relu(), a=nn.Conv1d(5, 5, 1), b=nn.Linear(8, 8)
    ),
}


@pytest.mark.parametrize("name", SILENT)
def test_no_siblings_are_no_misses(name: str):
    result = rewrite(SILENT[name], MergeSiblings(convolutions=True), torch.randn(ROWS))
    assert not result.record.commits
    assert not result.record.refused


def test_an_empty_input_finds_nothing_to_save():
    g = Program()
    x = g.input(torch.randn(0, 8))
    a, b = (g(aten.linear.default, x, g.weight(name, torch.randn(8, 8))) for name in ("a", "b"))
    graph = g.graph(g(aten.relu.default, a), g(aten.relu.default, b))
    assert not list(MergeSiblings(convolutions=True).find(graph, graph.calls()))
