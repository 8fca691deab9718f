"""Means and sums taken before what is linear, against the eager model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldBatchNorm, HoistPooling, HoistSharedPooling
from rewrite.driver import Driver
from rewrite.ops import value
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.blocks import Block, conv
from tests.passes.pooling import CONV, Outcome, agree, rewritten
from tests.passes.rewriting import apply, assert_exact, rewrite, scatter
from tests.programs import aten

Forward = Callable[[Block, Tensor], Tensor]


def gap(self: Block, x: Tensor) -> Tensor:
    return self.layer(x).mean((2, 3))


# layer, forward, what is left
MOVED: dict[str, tuple[nn.Module | None, Forward, list[str]]] = {
    "pointwise": (conv(4, 6, 1), gap, ["mean", "conv2d", "squeeze"]),
    "pointwise with a stride": (conv(4, 6, 1, stride=2), gap, ["slice", "slice", "mean", "conv2d", "squeeze"]),
    "adaptive pool": (conv(4, 6, 1), lambda self, x: F.adaptive_avg_pool2d(self.layer(x), 1), ["mean", "conv2d"]),
    "window of everything": (conv(4, 6, 1), lambda self, x: F.avg_pool2d(self.layer(x), (7, 5)), ["mean", "conv2d"]),
    "smaller than the kernel": (conv(4, 4, 13, padding=6, groups=4), gap, ["conv2d", "squeeze"]),
    "sum over output channels": (conv(4, 6, 3, groups=2), lambda self, x: self.layer(x).sum(1), ["conv2d", "squeeze"]),
    "transposed, over channels": (
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        lambda self, x: self.layer(x).mean(1, keepdim=True),
        ["conv_transpose2d"],
    ),
    "pooled along one side": (
        conv(4, 6, (4, 1), padding="same"),
        lambda self, x: self.layer(x).mean(3),
        ["mean", "constant_pad_nd", "conv2d", "squeeze"],
    ),
    "flattened": (conv(4, 6, 1), lambda self, x: self.layer(x).flatten(2).mean(-1), ["mean", "conv2d", "squeeze"]),
    "as tokens": (
        conv(4, 6, 1),
        lambda self, x: self.layer(x).flatten(2).transpose(1, 2).mean(1),
        ["mean", "conv2d", "squeeze"],
    ),
    "tokens": (nn.Linear(5, 3), lambda self, x: self.layer(x).mean((1, 2)), ["mean", "linear", "squeeze"]),
    "sum of tokens": (nn.Linear(5, 3), lambda self, x: self.layer(x).sum(2), ["mean", "linear", "mul", "squeeze"]),
    "sum of features": (nn.Linear(5, 3), lambda self, x: self.layer(x).sum(-1, keepdim=True), ["linear"]),
    "everything": (nn.Linear(5, 3), lambda self, x: self.layer(x).mean(), ["mean", "linear", "squeeze"]),
    "negated": (conv(4, 6, 1), lambda self, x: (-self.layer(x)).mean((2, 3)), ["mean", "conv2d", "squeeze", "neg"]),
    "divided": (
        conv(4, 6, 1),
        lambda self, x: (self.layer(x) / 2.5).sum((2, 3)),
        ["mean", "conv2d", "mul", "squeeze", "div"],
    ),
    "gated": (
        None,
        lambda self, x: (x * x.amax((2, 3), keepdim=True)).mean((2, 3)),
        ["amax", "mean", "squeeze", "mul"],
    ),
    "shifted": (
        conv(4, 6, 1),
        lambda self, x: (3 - self.layer(x)).sum((2, 3), keepdim=True),
        ["mean", "conv2d", "mul", "neg", "add"],
    ),
    "normed": (nn.BatchNorm2d(4), gap, ["mean", "mul", "add"]),
    "residual": (
        conv(4, 4, 1),
        lambda self, x: (x + self.layer(x.relu())).mean((2, 3)),
        ["relu", "mean", "mean", "conv2d", "squeeze", "add"],
    ),
    "scaled residual": (
        nn.Linear(5, 5),
        lambda self, x: (x - 0.5 * self.layer(x.relu()) + 2).mean(2),
        ["relu", "mean", "mean", "linear", "squeeze", "mul", "add", "add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_pools_move_before_what_is_linear(name: str):
    layer, forward, left = MOVED[name]
    model = scatter(Block(forward, **({} if layer is None else {"layer": layer})))
    x = torch.randn(2, 4, 7, 5)
    result = rewrite(model, HoistPooling(), x)
    assert result.operators == left
    assert result.record.commits
    assert_exact(result, model, x)


def test_a_convolution_with_a_border_keeps_the_sums_near_it_apart():
    model = Block(gap, layer=conv(4, 6, 3, padding=1)).eval()
    x = torch.randn(2, 4, 7, 5)
    result = rewrite(model, HoistPooling(), x)
    [layer] = result.layers
    assert layer.kernel == (3, 3)
    assert tuple(value(layer.node).shape[2:]) == (1, 1)
    assert_exact(result, model, x)


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_a_transposed_convolution_is_pooled_with_what_padding_crops(kind: str):
    layer = nn.ConvTranspose2d(4, 6, (4, 3), (2, 3), 1, output_padding=(1, 0), groups=2)
    model = Block(lambda self, x: getattr(self.layer(x), kind)((2, 3), keepdim=True), layer=layer).eval()
    x = torch.randn(2, 4, 7, 5)
    result = rewrite(model, HoistPooling(), x)
    assert "conv_transpose2d" not in result.operators
    assert_exact(result, model, x)


def test_convnext_pools_before_its_last_layer():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(F.gelu(self.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
            return (x + y).mean((-2, -1))

    model, x = Last().eval(), torch.randn(2, 6, 7, 7)
    result = rewrite(model, HoistPooling(), x)
    assert_exact(result, model, x)
    assert [value(layer.node).shape[1:] for layer in result.layers] == [(7, 7, 24), (1, 1, 6)]


# -- squeeze and excitation -------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A depthwise convolution, its norm, and a gate on it: UniRepLKNet's order, or ECA's with ``kernel``."""

    def __init__(self, eca: bool = False) -> None:
        super().__init__()
        self.layer, self.norm = conv(6, 6, 5, padding=2, groups=6), nn.BatchNorm2d(6)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False) if eca else nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        pooled = y.mean((2, 3))
        gate = self.gate(pooled[:, None])[:, 0] if isinstance(self.gate, nn.Conv1d) else self.gate(pooled)
        return y * gate.sigmoid()[:, :, None, None]


@pytest.mark.parametrize("eca", [False, True], ids=["se", "eca"])
def test_a_gate_is_known_before_the_convolution_runs_where_that_is_chosen(eca: bool):
    model, x = scatter(Gated(eca)), torch.randn(2, 6, 7, 8)
    graph = capture(model, (x,)).graph
    Driver(graph, MatchVerifier()).run([FoldBatchNorm()])
    refused = apply(graph, HoistPooling()).record
    assert not refused.commits
    [reason] = [item.reason for item in refused.refused]
    assert reason.endswith("is also read elsewhere, so the layer stays")
    assert f"name '{HoistSharedPooling.name}' in the pipeline" in refused.refused[0].remedy
    result = apply(graph, HoistSharedPooling())
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)
    [sigmoid] = [node for node in graph.calls() if node.target is aten.sigmoid.default]
    below, stack = set(), [sigmoid]
    while stack:
        node = stack.pop()
        below.add(node)
        stack += node.all_input_nodes
    [image] = [layer for layer in result.layers if value(layer.node).shape[-2:] == (7, 8)]
    assert image.node not in below


def test_a_choice_is_left_alone_where_nothing_else_reads_the_layer():
    result = rewrite(Block(gap, layer=conv(4, 6, 1)).eval(), HoistSharedPooling(), torch.randn(2, 4, 7, 5))
    assert not result.record.commits
    assert not result.reasons


# -- what is refused --------------------------------------------------------------------------------------------------

x4 = torch.randn(2, 4, 7, 5, dtype=torch.float64)


def pooled_conv(dims: list[int], *options: object, kernel: tuple[int, ...] = (3, 3), x: Tensor = x4) -> Outcome:
    weight = torch.randn(6, 4, *kernel, dtype=torch.float64)
    return rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.conv2d.default, x, w, None, *options), dims),
        HoistPooling(), x, weights={"w": weight},
    )  # fmt: skip


@pytest.mark.parametrize("act", [aten.relu.default, aten.gelu.default, aten.sigmoid.default], ids=str)
def test_nothing_moves_across_an_activation(act):
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(act, p(aten.conv2d.default, x, w)), [2, 3]),
        HoistPooling(), x4, weights={"w": torch.randn(6, 4, 1, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert outcome.operators == ["conv2d", outcome.operators[1], "mean"]
    assert not outcome.reasons


@pytest.mark.parametrize("kind", [aten.amax.default, aten.amin.default, aten.logsumexp.default], ids=str)
def test_other_reductions_stay(kind):
    outcome = rewritten(
        lambda p, x, w: p(kind, p(aten.conv2d.default, x, w), [2, 3]),
        HoistPooling(), x4, weights={"w": torch.randn(6, 4, 1, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert not outcome.record.commits


def test_windows_with_gaps_are_refused():
    # positions 3 k + 2 are never read; what is in them must not reach the result as 0 * inf
    outcome = pooled_conv([2, 3], [3, 3], [0, 0], [1, 1], kernel=(2, 2))
    assert outcome.reasons == ["the windows skip positions between those that they read"]
    assert not pooled_conv([2, 3], [2, 2], [0, 0], [1, 1], kernel=(2, 2)).reasons


def test_positions_behind_the_last_window_are_left_out():
    outcome = pooled_conv([2, 3], [2, 2], [0, 0], [1, 1], kernel=(2, 2))
    x = x4.clone()
    x[:, :, 6], x[:, :, :, 4] = float("inf"), float("nan")
    agree(outcome.run(x), outcome.after)


def test_positions_between_dilated_strides_are_left_out():
    outcome = pooled_conv([2, 3], [2, 2], [0, 0], [2, 2], kernel=(2, 2))
    assert outcome.record.commits
    x = x4.clone()
    x[:, :, 1::2] = float("nan")
    agree(outcome.run(x), outcome.after)


def test_transposed_convolutions_pooled_along_one_side_are_refused():
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.conv_transpose2d.input, x, w, None, [2, 2]), [3]),
        HoistPooling(), x4, weights={"w": torch.randn(4, 6, 3, 3, dtype=torch.float64)},
    )  # fmt: skip
    assert outcome.reasons == ["only some of the dimensions of a transposed convolution are pooled"]


def test_positions_of_which_padding_leaves_nothing_are_refused():
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.conv_transpose1d.default, x, w, None, [2], [3]), [2]),
        HoistPooling(), torch.randn(2, 4, 7, dtype=torch.float64),
        weights={"w": torch.randn(4, 6, 2, dtype=torch.float64)},
    )  # fmt: skip
    assert outcome.reasons == ["padding crops everything that comes from some positions of the input"]


def test_kernels_from_the_input_are_refused():
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.conv2d.default, x, w), [2, 3]),
        HoistPooling(), x4, torch.randn(6, 4, 1, 1, dtype=torch.float64), dynamic=False,
    )  # fmt: skip
    assert outcome.reasons == ["the kernel depends on the input"]


def test_complex_layers_and_images_without_a_batch_are_refused():
    complex_ = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.linear.default, x, w), [1]),
        HoistPooling(), torch.randn(2, 5, 4, dtype=torch.complex128),
        weights={"w": torch.randn(3, 4, dtype=torch.complex128)},
    )  # fmt: skip
    assert complex_.reasons == ["its values are torch.complex128"]
    for dims in ([1, 2], [0]):
        single = pooled_conv(dims, kernel=(1, 1), x=x4[0])
        assert single.reasons == ["the convolution's input has no batch dimension"]


def test_images_of_varying_size_are_refused():
    outcome = rewritten(
        lambda p, x, w: p(
            aten.mean.dim, p(aten.conv2d.default, p(aten.permute.default, x, [1, 2, 0, 3]), w), [2, 3]
        ),
        HoistPooling(), x4, weights={"w": torch.randn(6, 7, 1, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert outcome.reasons == ["the size of the image is not fixed"]


def test_what_takes_more_arithmetic_is_refused_with_the_numbers():
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.linear.default, x, w), [1]),
        HoistPooling(), torch.randn(2, 1, 6, dtype=torch.float64),
        weights={"w": torch.randn(2, 6, dtype=torch.float64)},
    )  # fmt: skip
    [reason] = outcome.reasons
    assert "takes 30 operations" in reason
    assert reason.endswith("with the pool behind it 26")


def test_norms_with_statistics_of_the_batch_are_refused():
    model = Block(gap, layer=nn.BatchNorm2d(4, track_running_stats=False)).eval()
    result = rewrite(model, HoistPooling(), torch.randn(2, 4, 7, 5))
    assert result.reasons == ["the norm keeps no running statistics"]


def test_a_norm_over_what_is_pooled_stays():
    norm = nn.BatchNorm1d(4).eval()
    model = scatter(Block(lambda self, x: self.layer(x).mean((1, 2)), layer=norm))
    assert not rewrite(model, HoistPooling(), torch.randn(2, 4, 7)).record.commits


# -- what is computed -------------------------------------------------------------------------------------------------


def test_one_layer_called_twice_is_pooled_twice():
    model = Block(lambda self, x: gap(self, x) + gap(self, x.relu()), layer=conv(4, 6, 3, padding=1)).eval()
    x = torch.randn(2, 4, 7, 5)
    result = rewrite(model, HoistPooling(), x)
    assert len(result.record.commits) == 2
    assert_exact(result, model, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_large_images_in_sixteen_bits_are_averaged_without_overflow(dtype: torch.dtype, kind: str):
    # the sum of an image is 2e5, which float16 does not hold; that of what the layer gives is small
    x = 8 + torch.randn(1, 2, 160, 160)
    weight = torch.randn(3, 2, 3, 3) / 1000
    weight -= weight.mean((1, 2, 3), keepdim=True)
    operator = {"mean": aten.mean.dim, "sum": aten.sum.dim_IntList}[kind]
    outcome = rewritten(
        lambda p, x, w: p(operator, p(aten.conv2d.default, x, w, None, [1, 1], [1, 1]), [2, 3]),
        HoistPooling(), x.to(dtype), weights={"w": weight.to(dtype)},
    )  # fmt: skip
    assert outcome.record.commits
    given = outcome.program.inputs[0].double(), outcome.program.weights["w"].double()
    exact, size = (getattr(F.conv2d(a, b, padding=1), kind)((2, 3)) for a, b in (given, [t.abs() for t in given]))
    assert outcome.after.dtype == dtype
    assert (outcome.after.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * size.max()


def test_gradients_reach_input_and_weights_as_before():
    model = Block(gap, layer=conv(4, 6, 3, padding=1, stride=2)).double().eval()
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    graph = capture(model, (x,)).graph
    assert apply(graph, HoistPooling()).record.commits
    program = graph.to_module()
    found, expected = [], []
    for function, gradients in ((program, found), (model, expected)):
        given = x.clone().requires_grad_()
        weights = dict(function.named_parameters())
        function(given).square().sum().backward()
        gradients += [given.grad, *(weights[name].grad.clone() for name in ("layer.weight", "layer.bias"))]
        for weight in weights.values():
            weight.grad = None
    for a, b in zip(found, expected, strict=True):
        agree(a, b)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_the_batch_stays_free(batch: int):
    outcome = pooled_conv([2, 3], [1, 1], [1, 1])
    x = torch.randn(batch, 4, 7, 5, dtype=torch.float64)
    expected = F.conv2d(x, outcome.program.weights["w"], padding=1).mean((2, 3))
    agree(outcome.run(x), expected)


def test_a_pool_that_touches_no_layer_is_not_of_interest():
    for options in ([0],), ([0, 1],):
        assert not pooled_conv(*options, kernel=(1, 1)).reasons


@pytest.mark.parametrize("target", CONV, ids=str)
def test_all_numbers_of_dimensions(target):
    dims = CONV.index(target) + 1
    x = torch.randn(2, 4, *(5, 6, 7)[:dims], dtype=torch.float64)
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(target, x, w, None, [1] * dims, [1] * dims), list(range(2, dims + 2))),
        HoistPooling(), x, weights={"w": torch.randn(6, 4, *[3] * dims, dtype=torch.float64)},
    )  # fmt: skip
    assert outcome.record.commits
    agree(outcome.after, outcome.before)
