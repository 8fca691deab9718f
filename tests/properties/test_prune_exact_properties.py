"""Channels that make no difference, planted in drawn layers and networks: they go, and nothing else changes."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes import PruneExact, RemoveUnreadChannels
from passes.prune_exact import MergeDuplicateChannels, RemoveDeadChannels, RemoveUnusedChannels
from rewrite.driver import Driver
from rewrite.testing import ConvSpec, assert_rule, convolutions
from rewrite.testing.networks import Network, networks
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.blocks import Block
from tests.passes.pruning import repeated, rows, sizes, unread, zeroed

FUNCTIONS: dict[str, Any] = {
    "identity": lambda y: y, "relu": F.relu, "leaky": lambda y: F.leaky_relu(y, 0.2), "gelu": F.gelu, "silu": F.silu,
    "hardswish": F.hardswish, "sigmoid": torch.sigmoid, "negative": lambda y: -y, "shifted": lambda y: y + 0.5,
}  # fmt: skip
HOMOGENEOUS = ("identity", "relu", "leaky", "negative")
COUNT = settings.default.max_examples // 3  # a model is captured for each


def layer_of(module: nn.Module) -> Any:
    """The convolution behind its padding."""
    return module[-1] if isinstance(module, nn.Sequential) else module


def chained(first: ConvSpec, second: ConvSpec, function: str) -> Block:
    """A layer, a function, and the layer that reads it; discarded where the first makes too small an image."""
    model = Block(lambda s, x: s.b(FUNCTIONS[function](s.a(x))), a=first.module(), b=second.module()).eval()
    try:
        with torch.no_grad():
            model(*first.inputs())
    except RuntimeError:
        assume(False)
    return model


@st.composite
def chains(draw: st.DrawFn, **options: Any) -> tuple[ConvSpec, ConvSpec]:
    """Two convolutions in a row."""
    first = draw(convolutions(dims=(1, 2), max_kernel=3, max_stride=2, max_dilation=2, **options))
    second = draw(convolutions(
        dims=first.dims, in_channels=first.out_channels, max_kernel=3, max_stride=2, max_dilation=2,
        dtypes=(first.dtype,),
    ))  # fmt: skip
    return first, second


def pads_zeros(spec: ConvSpec) -> bool:
    """Whether a convolution sees zeros around its input."""
    padded = spec.padding != "valid" and (spec.padding == "same" or any(map(any, spec.padding)))
    return padded and spec.padding_mode == "zeros"


@settings(max_examples=COUNT)
@given(chains(transposed=None), st.sampled_from(sorted(FUNCTIONS)), st.data())
def test_dead_channels_go(pair: tuple[ConvSpec, ConvSpec], function: str, data: st.DataObject):
    first, second = pair
    model = chained(first, second, function)
    layer = layer_of(model.a)
    dead = data.draw(st.sets(st.integers(0, first.out_channels - 1), min_size=1))
    bias = data.draw(st.sampled_from([0.0, -4.0, 0.75])) if first.bias else 0.0
    assume(not (first.transposed and first.groups > 1))
    zeroed(layer, *dead, bias=bias)
    result = assert_rule(RemoveDeadChannels(), model, first.inputs())
    zero = float(FUNCTIONS[function](torch.tensor(bias, dtype=torch.float64))) == 0
    if first.groups == second.groups == 1 and (zero or not pads_zeros(second)):
        assert sizes(result)[0] == max(1, first.out_channels - len(dead))


@settings(max_examples=COUNT)
@given(chains(), st.sampled_from(sorted(FUNCTIONS)), st.sampled_from([1.0, 1.0, 2.0, 0.25, -1.0, 3.0]), st.data())
def test_multiples_become_one(pair: tuple[ConvSpec, ConvSpec], function: str, factor: float, data: st.DataObject):
    first, second = pair
    assume(first.out_channels > 1)
    model = chained(first, second, function)
    source, channel = data.draw(st.permutations(range(first.out_channels)))[:2]
    repeated(layer_of(model.a), source, channel, factor)
    result = assert_rule(MergeDuplicateChannels(), model, first.inputs())
    linear = function in ("identity", "negative")
    passes = factor == 1 or (function in HOMOGENEOUS and factor != 3 and (factor > 0 or linear))
    if first.groups == second.groups == 1 and passes:
        assert sizes(result)[0] == first.out_channels - 1


@settings(max_examples=COUNT)
@given(chains(), st.sampled_from(sorted(FUNCTIONS)), st.data())
def test_unused_channels_go(pair: tuple[ConvSpec, ConvSpec], function: str, data: st.DataObject):
    first, second = pair
    assume(second.groups == 1)
    model = chained(first, second, function)
    gone = data.draw(st.sets(st.integers(0, first.out_channels - 1), min_size=1))
    unread(layer_of(model.b), *gone)
    result = assert_rule(RemoveUnusedChannels(), model, first.inputs())
    if first.groups == 1:
        assert sizes(result)[0] == max(1, first.out_channels - len(gone))


@settings(max_examples=COUNT)
@given(convolutions(dims=(1, 2), transposed=None, dtypes=(torch.float32, torch.float64)), st.data())
def test_unread_channels_go(spec: ConvSpec, data: st.DataObject):
    parts = data.draw(
        st.lists(st.tuples(st.integers(0, spec.out_channels - 1), st.integers(1, 3)), min_size=1, max_size=3)
    )

    def forward(s: Block, x: Tensor) -> Tensor:
        y = torch.tanh(s.a(x))
        return sum(y[:, start : start + length].sum(1) for start, length in parts)  # type: ignore[return-value]

    model = Block(forward, a=spec.module()).eval()
    result = assert_rule(RemoveUnreadChannels(), model, spec.inputs())
    read = {channel for start, length in parts for channel in range(start, min(start + length, spec.out_channels))}
    if spec.groups == 1:
        assert sizes(result) == [len(read)]


def plant(model: nn.Module, draw: st.DrawFn) -> None:
    """Make some channels of a network constant, multiples of others, or unused."""
    for module in model.modules():
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose2d, nn.BatchNorm2d)):
            continue
        kind = draw(st.sampled_from(["dead", "multiple", "unused", "nothing"]))
        if isinstance(module, nn.BatchNorm2d):
            if kind == "dead" and module.affine:
                with torch.no_grad():
                    module.weight[draw(st.integers(0, module.num_features - 1))] = 0
            continue
        count = len(rows(module))
        if kind == "dead":
            zeroed(module, draw(st.integers(0, count - 1)), bias=draw(st.sampled_from([0.0, -2.0, 0.5])))
        elif kind == "multiple" and count > 1:
            repeated(module, *draw(st.permutations(range(count)))[:2], draw(st.sampled_from([1.0, 1.0, -1.0, 2.0])))
        elif kind == "unused" and getattr(module, "groups", 1) == 1 and module.weight.shape[1] > 1:
            unread(module, draw(st.integers(0, module.weight.shape[1] - 1)))


@settings(max_examples=COUNT)
@given(networks(longest=4), st.data())
def test_networks_stay_what_they_are(network: Network, data: st.DataObject):
    model = network.module()
    plant(model, data.draw)
    result = assert_rule(PruneExact(), model, network.inputs())
    before = [found for found in result.before.calls() if "conv" in found.name or "linear" in found.name]
    assert len(result.layers) <= len(before)


@settings(max_examples=COUNT)
@given(networks(longest=3), st.integers(0, 1000))
def test_whole_numbers_stay_the_same_numbers(network: Network, seed: int):
    """With weights and inputs of small whole numbers every sum is exact in float64, so all results are equal."""
    model = network.module().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    whole = [kind for kind in model.modules() if isinstance(kind, (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d))]
    assume(len(whole) > 1)
    x = torch.randint(-3, 4, (2, *network.shape), generator=generator).double()
    captured = capture(model, (x,))
    Driver(captured.graph, MatchVerifier()).run([PruneExact()])
    with torch.no_grad():
        expected, found = model(x), captured.graph.to_module()(x)
    for a, b in zip(_flat(found), _flat(expected), strict=True):
        if bool((b == b.round()).all()) and float(b.abs().max()) < 2**40:
            assert torch.equal(a, b)


def _flat(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
