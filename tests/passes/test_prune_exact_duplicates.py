"""Channels that are multiples of each other, against the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.prune_exact import MergeDuplicateChannels
from tests.passes.blocks import Block, conv
from tests.passes.pruning import Forward, kept, norm, pruned, repeated, sizes, zeroed
from tests.passes.rewriting import assert_exact, rewrite

STEP = MergeDuplicateChannels()
X = torch.randn(2, 3, 8, 6)


def twins(factor: float = 1.0, **options: Any) -> Any:
    """Six channels of which the fourth is a multiple of the second."""
    return repeated(conv(3, 6, 3, **options), 1, 3, factor)


def equal(made: Any, source: int, channel: int) -> Any:
    """A norm or depthwise convolution that treats two channels alike."""
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.dim():
                tensor[channel] = tensor[source]
    return made


def ternary(layer: Any) -> Any:
    """Weights of three values for each channel, and no bias: ``W_o = s_o B_o``."""
    with torch.no_grad():
        pattern = torch.randint(-1, 2, layer.weight.shape).float()
        pattern[3], pattern[5] = pattern[1], -pattern[1]
        layer.weight.copy_(pattern * torch.rand(len(pattern), 1, 1, 1).add(0.1))
    return layer


MERGED: dict[str, tuple[list[int], Forward, dict[str, Any]]] = {
    "equal": ([5, 4], lambda s, x: s.b(s.a(x)), {"a": twins(), "b": conv(6, 4, 3)}),
    "equal before padding": ([5, 4], lambda s, x: s.b(s.a(x).sigmoid()), {
        "a": twins(), "b": conv(6, 4, 3, padding=1)}),
    "without bias": ([5, 4], lambda s, x: s.b(F.gelu(s.a(x))), {
        "a": twins(bias=False), "b": conv(6, 4, 1, bias=False)}),
    "double and rectifier": ([5, 4], lambda s, x: s.b(s.a(x).relu()), {"a": twins(2.0), "b": conv(6, 4, 3)}),
    "half and leaky rectifier": ([5, 4], lambda s, x: s.b(F.leaky_relu(s.a(x), 0.1)), {
        "a": twins(0.5), "b": conv(6, 4, 3, padding=1)}),
    "negative and linear": ([5, 4], lambda s, x: s.b(-F.avg_pool2d(s.a(x), 2)), {"a": twins(-4.0), "b": conv(6, 4, 1)}),
    "ternary": ([4, 4], lambda s, x: s.b(s.a(x)), {
        "a": ternary(conv(3, 6, 3, bias=False)), "b": conv(6, 4, 3, padding=1)}),
    "ternary, rectified": ([5, 4], lambda s, x: s.b(s.a(x).relu()), {
        "a": ternary(conv(3, 6, 3, bias=False)), "b": conv(6, 4, 3, padding=1)}),
    "ternary in many ways": ([4, 4], lambda s, x: s.b((lambda y: -torch.cat([y, y], 1).mean((2, 3)))(s.a(x))), {
        "a": ternary(conv(3, 6, 3, bias=False)), "b": nn.Linear(12, 4)}),
    "all equal": ([1, 4], lambda s, x: s.b(s.a(x).tanh()), {
        "a": repeated(repeated(conv(3, 3, 3), 0, 1), 0, 2), "b": conv(3, 4, 1)}),
    "max pool": ([5, 4], lambda s, x: s.b(F.max_pool2d(s.a(x), 3, 2, 1)), {"a": twins(2.0), "b": conv(6, 4, 1)}),
    "a sum over pixels": ([5, 4], lambda s, x: s.b(s.a(x).sum((2, 3))), {"a": twins(-2.0), "b": nn.Linear(6, 4)}),
    "norm": ([5, 4], lambda s, x: s.b(s.n(s.a(x)).sigmoid()), {
        "a": twins(), "n": equal(norm(6), 1, 3), "b": conv(6, 4, 1)}),
    "norm of another scale": ([5, 4], lambda s, x: s.b(s.n(s.a(x)).relu()), {
        "a": twins(), "n": norm(6), "b": conv(6, 4, 1)}),
    "depthwise": ([5, 5, 4], lambda s, x: s.b(s.d(s.a(x)).sigmoid()), {
        "a": twins(), "d": equal(conv(6, 6, 3, padding=1, groups=6), 1, 3), "b": conv(6, 4, 1)}),
    "depthwise, another multiple": ([5, 5, 4], lambda s, x: s.b(s.d(s.a(x))), {
        "a": twins(2.0), "d": repeated(conv(6, 6, 3, padding=1, groups=6, bias=False), 1, 3, -0.5),
        "b": conv(6, 4, 1)}),
    "flattened": ([5, 4], lambda s, x: s.b(s.a(x).relu().flatten(1)), {"a": twins(2.0), "b": nn.Linear(144, 4)}),
    "channels last": ([5, 4], lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1)), {"a": twins(2.0), "b": nn.Linear(6, 4)}),
    "linear": ([5, 4], lambda s, x: s.b(s.a(x).relu()), {
        "a": repeated(nn.Linear(6, 6), 1, 3, 0.5), "b": nn.Linear(6, 4)}),
    "matrix": ([5, 4], lambda s, x: torch.mm(s.a(x[:, 0, 0]).relu(), s.w), {
        "a": repeated(nn.Linear(6, 6), 1, 3, 0.5), "w": torch.randn(6, 4)}),
    "transposed": ([5, 4], lambda s, x: s.b(s.a(x)), {
        "a": repeated(nn.ConvTranspose2d(3, 6, 3), 1, 3, 2.0), "b": nn.ConvTranspose2d(6, 4, 3, padding=1)}),
    "both terms of a sum": ([5, 5, 4], lambda s, x: s.b((s.a(x) + s.c(x)).relu()), {
        "a": twins(2.0), "c": twins(2.0), "b": conv(6, 4, 1)}),
    "a number added": ([5, 4], lambda s, x: s.b(s.a(x) + 0.5), {"a": twins(), "b": conv(6, 4, 1)}),
    "a gate of one channel": ([1, 5, 4], lambda s, x: s.b(s.a(x) * s.c(x)), {
        "a": twins(2.0), "c": conv(3, 1, 3), "b": conv(6, 4, 1)}),
    "a product with itself": ([5, 4], lambda s, x: (lambda y: s.b(y * y))(s.a(x)), {
        "a": twins(2.0), "b": conv(6, 4, 1)}),
    "a quotient": ([5, 5, 4], lambda s, x: s.b(s.a(x) / s.c(x)), {
        "a": twins(2.0), "c": twins(4.0), "b": conv(6, 4, 1)}),
    "two readers": ([5, 4, 4], lambda s, x: (lambda y: s.b(y) + s.c(F.silu(y)))(s.a(x)), {
        "a": twins(), "b": conv(6, 4, 1), "c": conv(6, 4, 1)}),
    "joined": ([5, 2, 4], lambda s, x: s.b(torch.cat([s.c(x), s.a(x)], 1).relu()), {
        "a": twins(2.0), "c": conv(3, 2, 3), "b": conv(8, 4, 3)}),
    "parted": ([5, 4], lambda s, x: s.b(s.a(x).relu()[:, 1:5]), {"a": twins(2.0), "b": conv(4, 4, 3)}),
    "constants before padding": ([5, 4], lambda s, x: s.b(s.a(x).sigmoid()), {
        "a": (lambda layer: repeated(zeroed(layer, 1, 4, bias=0.7), 4, 4, 0.3))(conv(3, 6, 3)),
        "b": conv(6, 4, 3, padding=1)}),
    "constants made by a norm": ([5, 4], lambda s, x: s.b(s.n(s.a(x)).relu()), {
        "a": conv(3, 6, 3), "n": norm(6, 1, 4, shift=0.7), "b": conv(6, 4, 3, padding=1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_multiples_become_one(name: str):
    wanted, forward, parts = MERGED[name]
    if name == "norm of another scale":
        with torch.no_grad():
            for tensor in (parts["n"].running_mean, parts["n"].running_var):
                tensor[3] = tensor[1]
            for tensor in (parts["n"].weight, parts["n"].bias):
                tensor[3] = 2 * tensor[1]
    result = pruned(STEP, forward, X, **parts)
    assert sorted(sizes(result)) == sorted(wanted)
    # what is left of the ternary weights is a negative multiple
    assert len(result.record.refused) == (name == "ternary, rectified")


REFUSED: dict[str, tuple[str, str, Forward, dict[str, Any]]] = {
    "multiples through a sigmoid": ("behind sigmoid multiples of a channel are no multiples any more", "sigmoid",
                                    lambda s, x: s.b(s.a(x).sigmoid()), {"a": twins(2.0), "b": conv(6, 4, 1)}),
    "negative through a rectifier": ("behind relu multiples of a channel are no multiples any more", "relu",
                                     lambda s, x: s.b(s.a(x).relu()), {"a": twins(-1.0), "b": conv(6, 4, 1)}),
    "negative through a max pool": ("behind max_pool2d multiples of a channel are no multiples any more", "max_pool2d",
                                    lambda s, x: s.b(F.max_pool2d(s.a(x), 2)), {"a": twins(-1.0), "b": conv(6, 4, 1)}),
    "another norm": ("the parameters of batch_norm are not those of a multiple", "getitem",
                     lambda s, x: s.b(s.n(s.a(x))), {"a": twins(), "n": norm(6), "b": conv(6, 4, 1)}),
    "another depthwise kernel": ("the parameters of conv2d are not those of a multiple", "conv2d_1",
                                 lambda s, x: s.b(s.d(s.a(x))), {
                                     "a": twins(), "d": conv(6, 6, 3, groups=6), "b": conv(6, 4, 1)}),
    "one term of a sum": ("behind add multiples of a channel are no multiples any more", "add",
                          lambda s, x: s.b(s.a(x) + s.c(x)), {"a": twins(), "c": conv(3, 6, 3), "b": conv(6, 4, 1)}),
    "other multiples in a sum": ("behind add multiples of a channel are no multiples any more", "add",
                                 lambda s, x: s.b(s.a(x) + s.c(x)), {
                                     "a": twins(2.0), "c": twins(4.0), "b": conv(6, 4, 1)}),
    "a number added to multiples": ("behind add multiples of a channel are no multiples any more", "add",
                                    lambda s, x: s.b(s.a(x) + 0.5), {"a": twins(2.0), "b": conv(6, 4, 1)}),
    "another dtype": ("behind to multiples of a channel are no multiples any more", "",
                      lambda s, x: s.b(s.a(x).to(torch.float16).float()), {"a": twins(2.0), "b": conv(6, 4, 1)}),
    "negative maximum": ("behind amax multiples of a channel are no multiples any more", "amax",
                         lambda s, x: s.b(s.a(x).amax((2, 3))), {"a": twins(-2.0), "b": nn.Linear(6, 4)}),
    "norm of each channel": ("behind layer_norm multiples of a channel are no multiples any more", "layer_norm",
                             lambda s, x: s.b(s.n(s.a(x))), {
                                 "a": twins(2.0), "n": nn.LayerNorm(4), "b": conv(6, 4, 1)}),
    "padding with a constant": ("behind pad multiples of a channel are no multiples any more", "pad",
                                lambda s, x: s.b(F.pad(s.a(x), (1, 1), value=1.0)), {
                                    "a": twins(2.0), "b": conv(6, 4, 1)}),
    "something added to all": ("behind add multiples of a channel are no multiples any more", "add",
                               lambda s, x: s.b(s.a(x) + s.c(x)), {
                                   "a": twins(2.0), "c": conv(3, 1, 3), "b": conv(6, 4, 1)}),
    "group norm": ("group_norm normalizes groups of channels, which would be others", "group_norm",
                   lambda s, x: s.b(s.n(s.a(x))), {"a": twins(), "n": nn.GroupNorm(2, 6), "b": conv(6, 4, 1)}),
    "gate along the channels": ("conv1d runs along the channels, so their order and number matter", "conv1d",
                                lambda s, x: s.e(s.a(x).mean((2, 3))[:, None]), {
                                    "a": twins(), "e": nn.Conv1d(1, 1, 3, padding=1)}),
    "grouped reader": ("the convolution has 2 groups of channels, which would be unequal", "conv2d_1",
                       lambda s, x: s.b(s.a(x)), {"a": twins(), "b": conv(6, 4, 1, groups=2)}),
    "returned": ("the model returns the channels of conv2d in 'a'", "conv2d", lambda s, x: s.a(x), {"a": twins()}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_have_to_stay(name: str):
    reason, culprit, forward, parts = REFUSED[name]
    [found] = kept(STEP, forward, X, **parts)
    assert found[0] == reason
    assert found[1].startswith(culprit)
    assert found[2]


@pytest.mark.parametrize(("function", "factor", "remedy"), [
    (torch.sigmoid, 2.0, "use a rectifier instead of sigmoid ("),
    (F.relu, -1.0, "use multiples by a positive factor before relu ("),
])  # fmt: skip
def test_a_function_says_which_multiples_it_keeps(function: Any, factor: float, remedy: str):
    [found] = kept(STEP, lambda s, x: s.b(function(s.a(x))), X, a=twins(factor), b=conv(6, 4, 1))
    assert found[2].startswith(remedy)
    assert found[2].endswith(", or channels that are equal")


MENDED: dict[str, tuple[Forward, dict[str, Any]]] = {
    "multiples through a sigmoid": (lambda s, x: s.b(s.a(x).sigmoid()), {"a": twins(), "b": conv(6, 4, 1)}),
    "negative through a rectifier": (lambda s, x: s.b(s.a(x).relu()), {"a": twins(), "b": conv(6, 4, 1)}),
    "another depthwise kernel": (lambda s, x: s.b(s.d(s.a(x))), {
        "a": twins(), "d": equal(conv(6, 6, 3, groups=6), 1, 3), "b": conv(6, 4, 1)}),
    "one term of a sum": (lambda s, x: s.b(s.a(x)), {"a": twins(), "b": conv(6, 4, 1)}),
    "group norm": (lambda s, x: s.b(s.n(s.a(x))), {"a": twins(), "n": equal(norm(6), 1, 3), "b": conv(6, 4, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_what_follows_the_remedy_matches(name: str):
    forward, parts = MENDED[name]
    assert not pruned(STEP, forward, X, **parts).record.refused


SILENT: dict[str, dict[str, Any]] = {
    "no multiples": {"a": conv(3, 6, 3)},
    "equal weights, other biases": {"a": repeated(conv(3, 6, 3), 1, 3)},
    "multiples but for rounding": {"a": twins(3.0)},
    "nearly equal": {"a": twins()},
    "infinite": {"a": twins()},
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_no_multiple_is_left_alone(name: str):
    layer = SILENT[name]["a"]
    with torch.no_grad():
        if name.startswith("equal"):
            layer.bias[3] += 1
        if name == "nearly equal":
            layer.weight[3, 2, 2, 2] *= 1 + 2.0**-22
        if name == "infinite":
            layer.weight[[1, 3], 0, 0, 0] = float("nan")
    assert kept(STEP, lambda s, x: s.b(s.a(x).relu()), X, a=layer, b=conv(6, 4, 1)) == []


def test_a_channel_is_merged_where_every_reader_has_a_multiple_of_it():
    """The second and the fourth are equal for one reader, the fourth and the fifth for the other: nothing can go."""

    def forward(s: Block, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.b(y * s.g[:, None, None]) + s.c(y * s.h[:, None, None])

    layer = repeated(repeated(conv(3, 6, 3), 1, 3), 1, 4, 2.0)
    parts = {"a": layer, "b": conv(6, 4, 1), "c": conv(6, 4, 1), "g": torch.rand(6) + 1, "h": torch.rand(6) + 1}
    # all scales are linear, so all multiples stay multiples
    assert sizes(pruned(STEP, forward, X, **parts)) == [4, 4, 4]

    def mixed(s: Block, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.b((y + s.g[:, None, None]).relu()) + s.c((y + s.h[:, None, None]).relu())

    one, other = torch.rand(6), torch.rand(6)
    one[3], other[4] = one[1], 2 * other[1]
    parts |= {"g": one, "h": other}
    assert kept(STEP, mixed, X, **parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes_stay(dtype: torch.dtype):
    model = Block(lambda s, x: s.b(s.a(x).relu()), a=twins(2.0), b=conv(6, 4, 1, bias=False)).eval().to(dtype)
    result = rewrite(model, STEP, X.to(dtype))
    assert sizes(result) == [5, 4]
    assert_exact(result, model, X.to(dtype))


def test_finite_results_stay_where_a_channel_is_infinite():
    model = Block(lambda s, x: s.b(s.a(x)), a=twins(), b=conv(6, 4, 1)).eval()
    result = rewrite(model, STEP, X)
    x = X.clone()
    x[0, 0, 0, 0] = float("inf")
    with torch.no_grad():
        expected, found = model(x), result.graph.to_module()(x)
    known = expected.isfinite()
    assert not known.all()
    torch.testing.assert_close(found[known], expected[known])
