"""Pools over windows before activations and pointwise convolutions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes import CommutePooling
from rewrite.ops import AveragePool, Convolution, MaxPool
from tests.passes.blocks import Block, conv
from tests.passes.pooling import agree, rewritten
from tests.passes.rewriting import assert_exact, rewrite, scatter
from tests.programs import Program, aten, special

x4 = torch.randn(2, 4, 9, 8, dtype=torch.float64)
STEM = ([3, 3], [2, 2], [1, 1])

# Equal in every value, not up to rounding: what is computed of each element alone does not decrease.
RAMPS: dict[str, tuple[Any, ...]] = {
    "relu": (aten.relu.default,),
    "relu6": (aten.relu6.default,),
    "leaky_relu": (aten.leaky_relu.default, 0.2),
    "hardtanh": (aten.hardtanh.default, -0.5, 0.75),
    "clamp": (aten.clamp.default, None, 0.5),
    "threshold": (aten.threshold.default, 0.1, -0.2),
}
SMOOTH: dict[str, tuple[Any, ...]] = {
    "sigmoid": (aten.sigmoid.default,),
    "tanh": (aten.tanh.default,),
    "hardsigmoid": (aten.hardsigmoid.default,),
    "elu": (aten.elu.default, 0.7),
    "selu": (aten.selu.default,),
    "celu": (aten.celu.default, 1.5),
}
NOT_MONOTONE: dict[str, tuple[Any, ...]] = {
    "gelu": (aten.gelu.default,),
    "silu": (aten.silu.default,),
    "hardswish": (aten.hardswish.default,),
    "mish": (aten.mish.default,),
    "negative slope": (aten.leaky_relu.default, -0.2),
    "abs": (aten.abs.default,),
    "slope zero": (aten.leaky_relu.default, 0.0),  # NaN of minus infinity
    "flattened elu": (aten.elu.default, 1.0, 1.0, 0.0),
}


def act(p: Program, x: Any, call: tuple[Any, ...]) -> Any:
    return p(call[0], x, *call[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RAMPS)
def test_ramps_follow_the_maximum_with_equal_values(name: str, dtype: torch.dtype):
    x = special(2, 4, 9, 8, dtype=dtype)
    x[:, :, 3:7] = -x[:, :, 3:7].abs()  # windows without a positive element
    outcome = rewritten(lambda p, x: p(aten.max_pool2d.default, act(p, x, RAMPS[name]), *STEM), CommutePooling(), x)
    assert outcome.operators == ["max_pool2d", RAMPS[name][0]._opname]
    torch.testing.assert_close(outcome.after, outcome.before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_follow_the_maximum(name: str):
    outcome = rewritten(lambda p, x: p(aten.max_pool2d.default, act(p, x, SMOOTH[name]), *STEM), CommutePooling(), x4)
    assert outcome.operators == ["max_pool2d", SMOOTH[name][0]._opname]
    agree(outcome.after, outcome.before)
    x = special(2, 4, 9, 8, dtype=torch.float64)
    [before] = outcome.program.run(rewritten_model(SMOOTH[name], x), x)
    torch.testing.assert_close(outcome.run(x), before, rtol=1e-12, atol=1e-12, equal_nan=True)


def rewritten_model(call: tuple[Any, ...], x: torch.Tensor) -> Any:
    program = Program()
    return program.graph(program(aten.max_pool2d.default, act(program, program.input(x), call), *STEM))


@pytest.mark.parametrize("name", NOT_MONOTONE)
def test_activations_that_decrease_stay(name: str):
    outcome = rewritten(
        lambda p, x: p(aten.max_pool2d.default, act(p, x, NOT_MONOTONE[name]), *STEM), CommutePooling(), x4
    )
    assert not outcome.record.commits
    assert outcome.reasons == [f"{NOT_MONOTONE[name][0]._opname} does not keep the order of numbers"]
    assert outcome.remedies == ["use one that does, such as relu"]


Pool = Callable[[Program, Any], Any]

MAXIMA: dict[str, tuple[Pool, list[str]]] = {
    "with gaps": (lambda p, x: p(aten.max_pool2d.default, x, [2, 3], [2, 1], [1, 1], [3, 2]), ["max_pool2d", "relu"]),
    "hanging over": (lambda p, x: p(aten.max_pool2d.default, x, [2], [2], [0], [1], True), ["max_pool2d", "relu"]),
    "over all": (lambda p, x: p(aten.amax.default, x, [2, 3]), ["amax", "relu"]),
    "of everything": (lambda p, x: p(aten.max.default, x), ["amax", "relu"]),
    "least": (lambda p, x: p(aten.amin.default, x, [1], True), ["amin", "relu"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MAXIMA)
def test_every_kind_of_maximum(name: str):
    pool, left = MAXIMA[name]
    outcome = rewritten(lambda p, x: pool(p, p(aten.relu.default, x)), CommutePooling(), x4)
    assert outcome.operators == left
    torch.testing.assert_close(outcome.after, outcome.before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [aten.sum.dim_IntList, aten.mean.dim, aten.logsumexp.default], ids=str)
def test_other_reductions_of_activations_stay(kind: Any):
    outcome = rewritten(lambda p, x: p(kind, p(aten.relu.default, x), [2, 3]), CommutePooling(), x4)
    assert not outcome.record.commits
    assert not outcome.reasons


def test_indices_that_are_read_keep_the_activation_before():
    def build(p: Program, x: Any) -> Any:
        both = p(aten.max_pool2d_with_indices.default, p(aten.relu.default, x), *STEM)
        return p(operator.getitem, both, 0), p(operator.getitem, both, 1)

    outcome = rewritten(build, CommutePooling(), x4)
    assert outcome.reasons == ["where the maxima are is read too"]


def test_an_activation_that_others_read_stays():
    def build(p: Program, x: Any) -> Any:
        y = p(aten.relu.default, x)
        return p(aten.max_pool2d.default, y, *STEM), p(aten.exp.default, y)

    outcome = rewritten(build, CommutePooling(), x4)
    assert not outcome.record.commits
    assert outcome.reasons == ["relu is also read elsewhere"]


def test_lines_and_volumes():
    for target, x in ((aten.max_pool1d.default, x4[..., 0]), (aten.max_pool3d.default, x4[:, None])):
        size = [2] * (x.dim() - 2)
        outcome = rewritten(lambda p, x, t=target, k=size: p(t, p(aten.relu.default, x), k), CommutePooling(), x)
        assert outcome.operators == [target._opname, "relu"]
        agree(outcome.after, outcome.before)


def test_a_pool_that_keeps_the_size_gains_nothing():
    outcome = rewritten(
        lambda p, x: p(aten.max_pool2d.default, p(aten.relu.default, x), [3, 3], [1, 1], [1, 1]), CommutePooling(), x4
    )
    assert not outcome.record.commits
    assert not outcome.reasons


def test_a_window_of_nothing_but_padding_is_refused():
    # the model has minus infinity there, which relu would make zero
    x = torch.randn(1, 2, 8, 2, dtype=torch.float64)
    outcome = rewritten(
        lambda p, x: p(aten.max_pool2d.default, p(aten.relu.default, x), [2, 2], [2, 2], [0, 1], [1, 3]),
        CommutePooling(), x,
    )  # fmt: skip
    assert outcome.before.isinf().any()
    assert outcome.reasons == ["some window holds no element of the input"]


def test_a_resnet_stem_folds_and_commutes():
    stem = nn.Sequential(conv(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    model = scatter(nn.Sequential(stem, nn.MaxPool2d(3, 2, 1)))
    x = torch.randn(2, 3, 19, 21)
    result = rewrite(model, CommutePooling(), x)
    assert result.operators[-2:] == ["max_pool2d", "relu"]
    assert_exact(result, model, x)


# -- average pooling --------------------------------------------------------------------------------------------------


def averaged(*options: Any, bias: bool = True, channels: tuple[int, int] = (4, 3), **conv_options: Any) -> Any:
    inputs, outputs = channels
    groups = conv_options.get("groups", 1)
    weights = {"w": torch.randn(outputs, inputs // groups, 1, 1, dtype=torch.float64)}
    weights |= {"b": torch.randn(outputs, dtype=torch.float64)} if bias else {}
    return rewritten(
        lambda p, x, w, b=None: p(aten.avg_pool2d.default, p(aten.conv2d.default, x, w, b, **conv_options), *options),
        CommutePooling(), torch.randn(2, inputs, 9, 8, dtype=torch.float64), weights=weights,
    )  # fmt: skip


AVERAGES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "by two": (([2, 2],), {}),
    "overlapping": (([3, 2], [2, 1]), {"channels": (4, 12)}),
    "hanging over": (([2, 2], [2, 2], [0, 0], True), {}),
    "padded, without the zeros": (([3, 3], [2, 2], [1, 1], True, False), {}),
    "padded, without a bias": (([3, 3], [2, 2], [1, 1]), {"bias": False}),
    "divided, without a bias": (([2, 2], [2, 2], [0, 0], False, True, 3), {"bias": False}),
    "of groups": (([2, 2],), {"channels": (4, 6), "groups": 2}),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_move_before_pointwise_convolutions(name: str):
    options, settings = AVERAGES[name]
    outcome = averaged(*options, **settings)
    assert outcome.operators == ["avg_pool2d", "conv2d"]
    agree(outcome.after, outcome.before)


@pytest.mark.parametrize(
    ("options", "settings", "reason"),
    [
        (([3, 3], [2, 2], [1, 1]), {}, "the pool counts zeros of its padding"),
        (([2, 2], [2, 2], [0, 0], False, True, 3), {}, "the divisor of the pool is given"),
        (([2, 2],), {"padding": [1, 1]}, "the 1x1 convolution pads its input"),
        (([3, 3], [1, 1]), {"channels": (8, 1)}, "pooling first takes"),
    ],
    ids=["zeros count", "divisor", "padded convolution", "dearer"],
)
def test_averages_stay_where(options: tuple[Any, ...], settings: dict[str, Any], reason: str):
    outcome = averaged(*options, **settings)
    assert not outcome.record.commits
    [found] = outcome.reasons
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "options", [{"stride": [2, 2]}, {"kernel": 2}, {"transposed": True}], ids=["stride", "kernel", "transposed"]
)
def test_other_convolutions_are_not_of_interest(options: dict[str, Any]):
    kernel = options.pop("kernel", 1)
    weight = torch.randn(4, 4, kernel, kernel, dtype=torch.float64)
    target = aten.conv_transpose2d.input if options.pop("transposed", False) else aten.conv2d.default
    outcome = rewritten(
        lambda p, x, w: p(aten.avg_pool2d.default, p(target, x, w, None, **options), [2, 2]),
        CommutePooling(), x4, weights={"w": weight},
    )  # fmt: skip
    assert not outcome.record.commits
    assert not outcome.reasons


def test_a_pool_over_other_dimensions_is_not_of_interest():
    # two dimensions of the result of a convolution of one are its channels and positions
    outcome = rewritten(
        lambda p, x, w: p(aten.avg_pool2d.default, p(aten.conv1d.default, x, w), [2, 2]), CommutePooling(),
        torch.randn(2, 4, 8, dtype=torch.float64), weights={"w": torch.randn(4, 4, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert not outcome.record.commits
    assert not outcome.reasons


def test_a_convolution_that_others_read_stays():
    def build(p: Program, x: Any, w: Any) -> Any:
        y = p(aten.conv2d.default, x, w)
        return p(aten.avg_pool2d.default, y, [2, 2]), p(aten.relu.default, y)

    outcome = rewritten(build, CommutePooling(), x4, weights={"w": torch.randn(3, 4, 1, 1, dtype=torch.float64)})
    assert outcome.reasons == ["conv2d is also read elsewhere"]


def test_a_densenet_transition_has_a_quarter_of_the_elements():
    transition = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1, bias=False), nn.AvgPool2d(2, 2))
    model, x = scatter(transition), torch.randn(2, 8, 8, 6)
    result = rewrite(model, CommutePooling(), x)
    assert [type(found) for found in result.views(AveragePool, Convolution, MaxPool)] == [AveragePool, Convolution]
    assert_exact(result, model, x)
    with torch.no_grad():
        x = special(2, 8, 8, 6)
        torch.testing.assert_close(result.graph.to_module()(x).isnan(), model(x).isnan())


def test_a_compact_transformer_tokenizer_commutes():
    class Tokenizer(nn.Module):
        """Convolution, ReLU, overlapping max pooling, tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = conv(3, 8, 3, padding=1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(F.relu(self.layer(x)), 3, 2, 1).flatten(2).transpose(1, 2)

    model, x = Tokenizer().eval(), torch.randn(2, 3, 9, 9)
    result = rewrite(model, CommutePooling(), x)
    assert result.operators[1:4] == ["conv2d", "max_pool2d", "relu"]
    assert_exact(result, model, x)


def test_a_gate_on_the_pooled_value_does_not_stop_it():
    model = Block(lambda self, x: (y := F.max_pool2d(x.relu(), 2)) * y.sigmoid()).eval()
    assert len(rewrite(model, CommutePooling(), torch.randn(2, 4, 8, 8)).record.commits) == 1
