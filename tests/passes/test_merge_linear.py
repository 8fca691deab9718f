"""Two layers in a row as one, against the eager model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes import FoldBatchNorm, MergeLinear
from rewrite import cost
from rewrite.ops import Convolution
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, apply, assert_bounded, assert_exact, folded_graph, rewrite

Forward = Callable[[Block, Tensor], Tensor]
IMAGE = (3, 4, 9, 8)


def row(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def block(forward: Forward, **parts: nn.Module) -> nn.Module:
    return Block(forward, **parts)


def conv(*args: Any, **options: Any) -> nn.Module:
    return nn.Conv2d(*args, **options)


def through(first: nn.Module, second: nn.Module, between: Callable[[Tensor], Tensor]) -> nn.Module:
    return block(lambda self, x: self.second(between(self.first(x))), first=first, second=second)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


MERGED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (row(nn.Linear(4, 9), nn.Linear(9, 5)), (3, 2, 4)),
    "matrices": (
        block(lambda self, x: torch.mm(self.a(x), self.b.weight.t()), a=nn.Linear(4, 9), b=nn.Linear(9, 5)),
        (3, 4),
    ),
    "matrices stored transposed": (
        block(
            lambda self, x: torch.addmm(self.b.bias[:5], torch.mm(x, self.a.weight), self.b.weight),
            a=nn.Linear(9, 4),
            b=nn.Linear(5, 9),
        ),
        (3, 4),
    ),
    "1x1": (row(conv(4, 9, 1), conv(9, 5, 1)), IMAGE),
    "1x1 before a kernel": (row(conv(4, 9, 1), conv(9, 3, (3, 2), stride=2, dilation=(1, 3))), IMAGE),
    "1x1 without bias before padding": (row(conv(4, 9, 1, bias=False), conv(9, 3, 3, padding=(2, 1))), IMAGE),
    "1x1 without bias before padding='same'": (
        row(conv(4, 9, 1, bias=False), conv(9, 3, (4, 3), padding="same")),
        IMAGE,
    ),
    "kernel before 1x1": (row(conv(4, 9, 3, stride=2, padding=1), conv(9, 5, 1)), IMAGE),
    "kernel with padding='same' before 1x1": (row(conv(4, 9, 4, padding="same"), conv(9, 5, 1)), IMAGE),
    "kernels": (row(conv(4, 60, 3, stride=2), conv(60, 2, (2, 3), dilation=(2, 1), padding=0)), IMAGE),
    "separable kernel": (
        row(conv(4, 20, (3, 1), padding=(1, 0), bias=False), conv(20, 3, (1, 3), padding=(0, 1))),
        IMAGE,
    ),
    "fully padded kernel before padding": (
        row(conv(4, 60, 3, padding=2, bias=False), conv(60, 2, 2, padding=1)),
        IMAGE,
    ),
    "patches before padding": (
        row(conv(4, 250, 2, stride=2, bias=False), conv(250, 2, 2, padding=1)),
        (3, 4, 8, 6),
    ),
    "kernels in one dimension": (
        row(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 4, 4, groups=4)),
        (3, 4, 21),
    ),
    "groups": (row(conv(4, 12, 3, groups=2), conv(12, 4, 1, groups=2)), IMAGE),
    "groups of different numbers": (row(conv(4, 24, 1, groups=2), conv(24, 8, 3, groups=4)), IMAGE),
    "depthwise 1x1": (row(conv(4, 4, 1, groups=4), conv(4, 6, 3)), IMAGE),
    "depthwise to one channel": (row(conv(4, 4, 3, groups=4), conv(4, 1, 1)), IMAGE),
    "transposed before 1x1": (
        row(nn.ConvTranspose2d(4, 9, 3, stride=2, padding=1, output_padding=1), conv(9, 4, 1)),
        IMAGE,
    ),
    "transposed with groups before 1x1": (
        row(nn.ConvTranspose2d(4, 12, 3, groups=2), conv(12, 4, 1, groups=4)),
        IMAGE,
    ),
    "1x1 before transposed": (
        row(conv(4, 9, 1, bias=False), nn.ConvTranspose2d(9, 3, 3, stride=2, output_padding=1)),
        IMAGE,
    ),
    "linear behind a kernel": (
        block(lambda self, x: self.b(tokens(self.a(x))).relu(), a=conv(4, 9, 3, stride=2), b=nn.Linear(9, 5)),
        IMAGE,
    ),
    "linear behind 1x1, flat": (through(conv(4, 9, 1), nn.Linear(9, 5), tokens), IMAGE),
    "linear behind 1x1, permuted": (through(conv(4, 9, 1), nn.Linear(9, 5), lambda x: x.permute(0, 2, 3, 1)), IMAGE),
    "linear behind 1x1, copied": (
        through(conv(4, 9, 1), nn.Linear(9, 5), lambda x: x.permute(0, 2, 3, 1).contiguous()),
        IMAGE,
    ),
    "linear behind 1x1 of one pixel": (through(conv(4, 9, 1), nn.Linear(9, 5), lambda x: x.flatten(1)), (3, 4, 1, 1)),
    "1x1 behind linear": (through(nn.Linear(4, 9), conv(9, 5, 1), lambda x: x.permute(0, 3, 1, 2)), (3, 9, 8, 4)),
    "kernel behind linear": (
        through(nn.Linear(4, 9, bias=False), conv(9, 3, 3, padding=1), lambda x: x.permute(0, 3, 1, 2)),
        (3, 9, 8, 4),
    ),
    "1x1 behind linear on squares": (
        through(nn.Linear(4, 9), conv(9, 5, 1), lambda x: x.transpose(1, 2).unflatten(2, (3, 2))),
        (3, 6, 4),
    ),
    "grouped 1x1 behind linear": (
        through(nn.Linear(4, 12), conv(12, 4, 1, groups=2), lambda x: x.permute(0, 3, 1, 2)),
        (3, 9, 8, 4),
    ),
    "mirrored between": (
        row(conv(4, 9, 1), conv(9, 3, 3, padding=1, padding_mode="reflect")),
        IMAGE,
    ),
    "zeros between": (row(conv(4, 9, 1, bias=False), nn.ZeroPad2d((1, 0, 2, 1)), conv(9, 3, 3)), IMAGE),
    "cropped between": (row(conv(4, 9, 1), nn.ZeroPad2d((-1, 0, -2, -1)), conv(9, 3, 3)), IMAGE),
}


@pytest.mark.parametrize("name", MERGED)
def test_two_layers_become_one(name: str):
    model, shape = MERGED[name]
    x = torch.randn(shape)
    graph = capture(model.eval(), (x,)).graph
    before = cost.count(graph)
    result = apply(graph, MergeLinear())
    assert len(result.record.commits) == 1
    assert len(result.layers) == 1
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, *shape[1:]))
    assert_exact(result, model, torch.randn(7, *shape[1:]).mT.contiguous().mT)
    after = cost.count(folded_graph(result))
    assert after.flops <= before.flops
    assert after.weight_bytes <= before.weight_bytes
    assert after.weight_bearing < before.weight_bearing


@pytest.mark.parametrize("name", ["linear", "1x1 before a kernel", "kernels", "separable kernel"])
def test_each_element_errs_as_its_terms_allow(name: str):
    model, shape = MERGED[name]
    x = torch.randn(shape)
    assert_bounded(rewrite(model.eval(), MergeLinear(), x), model, x)


@pytest.mark.parametrize("name", ["linear", "1x1 without bias before padding", "linear behind 1x1, flat", "kernels"])
def test_any_batch_runs(name: str):
    model, shape = MERGED[name]
    result = rewrite(model.eval(), MergeLinear(), torch.randn(shape))
    for batch in (0, 1, 5):
        x = torch.randn(batch, *shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(result.graph.to_module()(x), model(x))


@pytest.mark.parametrize("name", ["linear", "1x1 before a kernel", "groups"])
def test_other_dtypes_stay_what_they_are(name: str):
    model, shape = MERGED[name]
    half = Block(lambda self, x: self.part(x), part=model).bfloat16().eval()
    x = torch.randn(shape).bfloat16()
    result = rewrite(half, MergeLinear(), x)
    assert len(result.record.commits) == 1
    assert {value.dtype for value in (result.graph.to_module()(x),)} == {torch.bfloat16}
    model.float()


def test_layers_in_a_row_become_one_after_another():
    model = row(conv(4, 9, 1), conv(9, 8, 1), conv(8, 3, 1)).eval()
    x = torch.randn(IMAGE)
    result = rewrite(model, MergeLinear(), x)
    assert len(result.record.commits) == 2
    assert result.operators == ["conv2d"]
    assert_exact(result, model, x)


def test_layers_of_the_same_weights_become_one():
    layer = nn.Linear(6, 6)
    model = row(layer, layer).eval()
    result = rewrite(model, MergeLinear(), torch.randn(3, 6))
    assert result.operators == ["linear"]
    assert_exact(result, model, torch.randn(3, 6))


def strides(result: Result, x: Tensor) -> tuple[int, ...]:
    return tuple(result.graph.to_module()(x).stride())


def test_what_the_model_returns_keeps_its_strides():
    model = through(conv(4, 9, 2, stride=2), nn.Linear(9, 5), tokens).eval()
    x = torch.randn(3, 4, 8, 8)
    result = rewrite(model, MergeLinear(), x)
    assert len(result.record.commits) == 1
    assert strides(result, x) == tuple(model(x).stride())
    assert_exact(result, model, x)


def test_channels_last_stays_channels_last():
    model = row(conv(4, 9, 3, bias=False), conv(9, 5, 1)).to(memory_format=torch.channels_last).eval()
    for x in (torch.randn(IMAGE), torch.randn(IMAGE).contiguous(memory_format=torch.channels_last)):
        result = rewrite(model, MergeLinear(), x)
        assert strides(result, x) == tuple(model(x).stride())
        assert_exact(result, model, x)


# -- what is refused ---------------------------------------------------------------------------------------------------

COST = "merging would take {} FLOPs and {} bytes of weights instead of {} FLOPs and {} bytes of weights"

REFUSED: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...], str, str]] = {
    # blocked, mended as the remedy says, input, reason, remedy
    "bias before padding": (
        row(conv(4, 9, 1), conv(9, 3, 3, padding=1)),
        row(conv(4, 9, 1, bias=False), conv(9, 3, 3, padding=1)),
        IMAGE,
        "the second convolution pads with zeros, which the first one's bias would move",
        "build conv2d in '0' with bias=False",
    ),
    "bias before padding, unpadded": (
        row(conv(4, 9, 1), conv(9, 3, 3, padding=1)),
        row(conv(4, 9, 1), conv(9, 3, 3)),
        IMAGE,
        "the second convolution pads with zeros, which the first one's bias would move",
        "or conv2d in '1' with padding=0",
    ),
    "bias before padding in one dimension": (
        row(conv(4, 20, (3, 1), padding=(1, 0)), conv(20, 3, (1, 3), padding=(0, 1))),
        row(conv(4, 20, (3, 1), padding=(1, 0), bias=False), conv(20, 3, (1, 3), padding=(0, 1))),
        IMAGE,
        "the second convolution pads with zeros, which the first one's bias would move",
        "build conv2d in '0' with bias=False",
    ),
    "kernels and padding": (
        row(conv(4, 60, 3, padding=1, bias=False), conv(60, 2, 3, padding=1)),
        row(conv(4, 60, 3, padding=1, bias=False), conv(60, 2, 3)),
        IMAGE,
        "the second convolution pads with zeros where taps of the first one still find its input",
        "build conv2d in '1' with padding=0",
    ),
    "depthwise kernels and padding": (
        row(nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.Conv1d(4, 4, 4, groups=4, padding=1)),
        row(nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.Conv1d(4, 4, 4, groups=4)),
        (3, 4, 40),
        "the second convolution pads with zeros where taps of the first one still find its input",
        "build conv1d in '1' with padding=0",
    ),
    "padding behind the last patch": (
        row(conv(4, 250, 2, stride=2, bias=False), conv(250, 2, 2, padding=1)),
        row(conv(4, 250, 2, stride=2, bias=False), conv(250, 2, 2)),
        (3, 4, 9, 6),
        "the second convolution pads with zeros where taps of the first one still find its input",
        "build conv2d in '1' with padding=0",
    ),
    "bias before zeros": (
        row(conv(4, 9, 1), nn.ZeroPad2d(1), conv(9, 3, 3)),
        row(conv(4, 9, 1, bias=False), nn.ZeroPad2d(1), conv(9, 3, 3)),
        IMAGE,
        "the value between the two is padded with zeros, which the first one's bias would move",
        "build conv2d in '0' with bias=False",
    ),
    "ones between": (
        row(conv(4, 9, 1), nn.ConstantPad2d(1, 1.0), conv(9, 3, 3)),
        row(conv(4, 9, 1, bias=False), nn.ConstantPad2d(1, 0.0), conv(9, 3, 3)),
        IMAGE,
        "the value between the two is padded with a constant other than zero",
        "pad with zeros and build conv2d in '0' with bias=False",
    ),
    "zeros between kernels": (
        row(conv(4, 60, 3), nn.ZeroPad2d(1), conv(60, 2, 3)),
        row(conv(4, 60, 3), conv(60, 2, 3)),
        IMAGE,
        "pad stands between a kernel of several taps and the next layer",
        "take pad in '1' out from between",
    ),
    "zeros between a kernel and 1x1": (
        row(conv(4, 9, 3), nn.ZeroPad2d(1), conv(9, 2, 1)),
        row(conv(4, 9, 3), conv(9, 2, 1)),
        IMAGE,
        "pad stands between a kernel of several taps and the next layer",
        "take pad in '1' out from between",
    ),
    "bias before transposed": (
        row(conv(4, 9, 1), nn.ConvTranspose2d(9, 3, 3)),
        row(conv(4, 9, 1, bias=False), nn.ConvTranspose2d(9, 3, 3)),
        IMAGE,
        "the first one's bias meets fewer taps of the transposed convolution at its border",
        "build conv2d in '0' with bias=False",
    ),
    "transposed before a kernel": (
        row(nn.ConvTranspose2d(4, 9, 3), conv(9, 3, 3)),
        row(nn.ConvTranspose2d(4, 9, 3), conv(9, 3, 1)),
        IMAGE,
        "a transposed convolution and a kernel of several taps make no convolution",
        "build conv2d in '1' with kernel_size=1, stride=1 and padding=0",
    ),
    "unequal padding": (
        row(conv(4, 200, 1, stride=2, padding=1, bias=False), conv(200, 3, 2, padding="same")),
        row(conv(4, 200, 1, stride=2, padding=1, bias=False), conv(200, 3, 2, padding=1)),
        IMAGE,
        "the merged convolution would pad its two sides differently",
        "give both of them equal padding on both sides",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_border_is_refused_until_it_is_mended(name: str):
    blocked, mended, shape, reason, remedy = REFUSED[name]
    x = torch.randn(shape)
    result = rewrite(blocked.eval(), MergeLinear(), x)
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.reason == reason
    assert remedy in refused.remedy
    assert len(rewrite(mended.eval(), MergeLinear(), x).record.commits) == 1


WIDER: dict[str, tuple[Callable[[int], nn.Module], int, tuple[int, ...], tuple[int, int, int, int]]] = {
    "bottleneck": (
        lambda h: row(nn.Linear(4, h), nn.Linear(h, 5)),
        2, (3, 4), (2 * 20, 4 * 25, 2 * (8 + 10), 4 * (8 + 2 + 10 + 5)),
    ),
    "bottleneck before a kernel": (
        lambda h: row(conv(4, h, 1), conv(h, 4, 3)),
        2, IMAGE, (2 * 42 * 144, 4 * 148, 2 * (72 * 8 + 42 * 72), 4 * (8 + 2 + 72 + 4)),
    ),
    "depthwise before 1x1": (
        lambda h: row(conv(4, h, 3, groups=4), conv(h, 8, 1)),
        4, IMAGE, (2 * 42 * 288, 4 * 296, 2 * 42 * (36 + 32), 4 * (36 + 4 + 32 + 8)),
    ),
    "depthwise kernels": (
        lambda h: row(conv(4, h, 3, groups=4), conv(h, 4, 3, groups=4)),
        4, IMAGE, (2 * 20 * 100, 4 * 104, 2 * (42 * 36 + 20 * 36), 4 * 80),
    ),
    "separable depthwise kernel": (
        lambda h: row(conv(4, h, (3, 1), groups=4, padding=(1, 0), bias=False),
                      conv(h, 4, (1, 3), groups=4, padding=(0, 1), bias=False)),
        4, IMAGE, (2 * 72 * 36, 4 * 36, 2 * 72 * 24, 4 * 24),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDER)
def test_what_would_cost_more_is_refused_with_both_counts(name: str):
    build, width, shape, counts = WIDER[name]
    x = torch.randn(shape)
    result = rewrite(build(width).eval(), MergeLinear(), x)
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.reason == COST.format(*(f"{count:,}" for count in counts))
    assert refused.gain.seconds == 0
    needed = int(re.fullmatch(r"give the value between the two at least (\d+) channels", refused.remedy)[1])
    assert len(rewrite(build(needed).eval(), MergeLinear(), x).record.commits) == 1
    if name == "bottleneck":
        assert not rewrite(build(needed - 1).eval(), MergeLinear(), x).record.commits


def test_nothing_is_said_of_layers_with_nothing_between():
    model = block(lambda self, x: self.b(self.a(x)), a=nn.Linear(4, 1), b=nn.Linear(1, 5))
    model.a.weight, model.a.bias = nn.Parameter(torch.empty(0, 4)), nn.Parameter(torch.empty(0))
    model.b.weight = nn.Parameter(torch.empty(5, 0))
    result = rewrite(model.eval(), MergeLinear(), torch.randn(3, 4))
    assert not result.record.commits
    assert not result.record.refused


def test_a_value_that_others_read_stays():
    for forward in (lambda self, x: self.b(h := self.a(x)) + h.mean(), lambda self, x: (self.b(h := self.a(x)), h)):
        result = rewrite(
            block(forward, a=nn.Linear(4, 9), b=nn.Linear(9, 5)).eval(), MergeLinear(), torch.randn(3, 4)
        )  # fmt: skip
        assert not result.record.commits
        assert "is also read elsewhere" in result.reasons[0]


def test_weights_that_others_read_are_not_counted_as_saved():
    def build(other: nn.Module) -> nn.Module:
        return block(lambda self, x: self.b(self.a(x)) + self.c(x.relu()).sum(), a=first, b=nn.Linear(6, 8), c=other)

    first = nn.Linear(8, 6)
    result = rewrite(build(first).eval(), MergeLinear(), torch.randn(3, 8))
    assert not result.record.commits
    assert result.reasons[0].endswith("for others read the same weights")
    assert result.record.refused[0].remedy == "give the two layers weights of their own"
    assert rewrite(build(nn.Linear(8, 6)).eval(), MergeLinear(), torch.randn(3, 8)).record.commits


VARYING: dict[str, Any] = {
    "the first": lambda self, x: self.b(nn.functional.linear(x, self.a.weight * x.mean())),
    "the second": lambda self, x: nn.functional.linear(self.a(x), self.b.weight * x.mean()),
}


@pytest.mark.parametrize("name", VARYING)
def test_a_kernel_that_depends_on_the_input_is_refused(name: str):
    model = block(VARYING[name], a=nn.Linear(4, 9), b=nn.Linear(9, 5))
    result = rewrite(model.eval(), MergeLinear(), torch.randn(3, 4))
    assert result.reasons == ["the kernel depends on the input"]


def test_complex_layers_are_refused():
    model = row(nn.Linear(4, 9, dtype=torch.complex64), nn.Linear(9, 5, dtype=torch.complex64)).eval()
    result = rewrite(model, MergeLinear(), torch.randn(3, 4, dtype=torch.complex64))
    assert result.reasons == ["its values are torch.complex64"]


SILENT: dict[str, nn.Module] = {
    "activation": row(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)),
    "norm": row(nn.Linear(4, 9), nn.LayerNorm(9), nn.Linear(9, 5)),
    "other dimensions": through(nn.Linear(4, 9), nn.Linear(6, 5), lambda x: x.transpose(1, 2)),
    "channels flattened with positions": through(nn.Linear(4, 9), nn.Linear(54, 5), lambda x: x.flatten(1)),
}


@pytest.mark.parametrize("name", SILENT)
def test_other_rows_of_layers_are_no_misses(name: str):
    result = rewrite(SILENT[name].eval(), MergeLinear(), torch.randn(3, 6, 4))
    assert not result.record.commits
    assert not result.record.refused


def test_gradients_reach_both_layers():
    model = row(conv(4, 9, 1), conv(9, 3, 3)).eval().double()
    x = torch.randn(IMAGE, dtype=torch.float64)
    result = rewrite(model, MergeLinear(), x)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in result.graph.weights.items()}
    result.graph.to_module(weights)(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad)


def test_groups_become_no_fewer_than_needed():
    model = row(conv(4, 12, 3, groups=2), conv(12, 4, 1, groups=4)).eval()
    [layer] = rewrite(model, MergeLinear(), torch.randn(IMAGE)).layers
    assert isinstance(layer, Convolution)
    assert layer.groups == 2


@pytest.mark.parametrize(
    ("second", "remedy"),
    [
        (conv(9, 3, 3, padding=1), "build conv2d in '2' with padding=0"),
        (row(nn.ZeroPad2d(1), conv(9, 3, 3)), "take pad in '2.0' out from between"),
        (row(nn.ConstantPad2d(1, 1.0), conv(9, 3, 3)), "pad with zeros"),
        (nn.ConvTranspose2d(9, 3, 3), "take the shift out of what is folded into conv2d in '1'"),
    ],
)
def test_the_bias_of_a_folded_norm_is_no_argument_of_the_layer(second: nn.Module, remedy: str):
    model = row(conv(4, 9, 1, bias=False), nn.BatchNorm2d(9), second).eval()
    first = rewrite(model, FoldBatchNorm(), torch.randn(IMAGE))
    assert first.record.commits
    [refused] = apply(first.graph, MergeLinear()).record.refused
    assert refused.remedy == remedy
