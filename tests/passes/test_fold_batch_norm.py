"""Folded batch norms against the eager model: float64 to 1e-12, float32 by the error bound of each element."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldBatchNorm
from rewrite.trace import capture
from tests.passes.blocks import NORMS, Block
from tests.passes.rewriting import Result, apply, assert_bounded, assert_exact, rewrite, scatter

SIZES = {1: (11,), 2: (9, 7), 3: (5, 6, 4)}

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "conv2d without bias": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "conv3d": lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)),
    "strided and dilated": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=2, dilation=(2, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 5, padding=2, groups=4, bias=False),
    "same": lambda: nn.Conv2d(4, 6, (4, 3), padding="same"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed 1d": lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
    "transposed 2d without bias": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, bias=False),
    "transposed with groups": lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=2),
    "transposed 3d with groups": lambda: nn.ConvTranspose3d(4, 8, 2, groups=4),
}


def dims_of(layer: nn.Module) -> int:
    return layer.weight.dim() - 2


@pytest.mark.parametrize(
    ("name", "affine"), [*((name, True) for name in LAYERS), ("conv1d", False), ("transposed with groups", False)]
)
def test_norm_after_convolution(name: str, affine: bool):
    layer = LAYERS[name]()
    model = scatter(nn.Sequential(layer, NORMS[dims_of(layer)](layer.out_channels, affine=affine)))
    x = torch.randn(2, 4, *SIZES[dims_of(layer)])
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert len(result.layers) == 1
    assert [commit.rule for commit in result.record.commits] == ["fold-batch-norm-after"]
    assert_exact(result, model, x)
    if name not in ("same", "reflect"):
        assert_bounded(result, model, x)


@pytest.mark.parametrize("bias", [True, False])
def test_norm_after_linear(bias: bool):
    model = scatter(nn.Sequential(nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7)))
    x = torch.randn(3, 5)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert_exact(result, model, x)
    assert_bounded(result, model, x)


class Matmul(nn.Module):
    """A linear layer whose weight is stored as it is used, with or without a bias, then a norm."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 7))
        self.bias = nn.Parameter(torch.randn(7)) if bias else None
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight))


@pytest.mark.parametrize("bias", [True, False])
def test_norm_after_a_weight_stored_transposed(bias: bool):
    model = scatter(Matmul(bias))
    x = torch.randn(3, 5)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert_exact(result, model, x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 5), (3, 4)),
        (nn.Linear(4, 5, bias=False), (3, 4)),
        (nn.Conv2d(4, 6, 1), (2, 4, 5, 3)),
        (nn.Conv2d(4, 6, 3, stride=2, bias=False), (2, 4, 9, 7)),
        (nn.Conv1d(4, 6, 3, dilation=2, groups=2), (2, 4, 9)),
        (nn.Conv3d(4, 4, 2, groups=4), (2, 4, 3, 4, 5)),
        (nn.Conv2d(4, 6, 1, padding="same"), (2, 4, 5, 3)),
    ],
    ids=str,
)
def test_norm_before_a_layer_that_does_not_pad(layer: nn.Module, shape: tuple[int, ...]):
    model = scatter(nn.Sequential(NORMS[max(len(shape) - 2, 1)](4, affine=layer.bias is not None), layer))
    x = torch.randn(shape)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert [commit.rule for commit in result.record.commits] == ["fold-batch-norm-before"]
    assert_exact(result, model, x)


def test_a_norm_between_two_layers_goes_into_the_first():
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert [commit.rule for commit in result.record.commits] == ["fold-batch-norm-after"]
    assert_exact(result, model, x)


def test_norms_in_a_row_all_fold():
    model = scatter(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert result.operators == ["conv2d"]
    assert_exact(result, model, x)
    assert_bounded(result, model, x)


class Tokens(nn.Module):
    """LeViT's linear layer on tokens: the norm sees them flattened (Graham et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y)


class ChannelsLast(nn.Module):
    """A linear layer on pixels, whose output returns to channels first before its norm, as in UniRepLKNet."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("kind", "shape"), [(Tokens, (3, 5, 4)), (ChannelsLast, (2, 4, 3, 5))])
def test_layout_between_layer_and_norm_stays(kind: type[nn.Module], shape: tuple[int, ...]):
    model = scatter(kind())
    x = torch.randn(shape)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert_exact(result, model, x)


def test_convolution_flattened_before_the_norm():
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4)))
    x = torch.randn(2, 3, 6, 5)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert_exact(result, model, x)


class Twice(nn.Module):
    """One convolution called twice, with a norm for each call, or with a norm for one of them."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second = nn.Identity() if bare else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)).relu()))


@pytest.mark.parametrize("bare", [True, False])
def test_each_call_of_a_shared_convolution_has_its_own_fold(bare: bool):
    model = scatter(Twice(bare))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert_exact(result, model, x)


class SelfPadding(nn.Conv2d):
    """A convolution that reports no padding and pads inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


@pytest.mark.parametrize("first", ["norm", "conv"])
def test_a_convolution_is_what_it_does_not_what_it_says(first: str):
    parts = [nn.BatchNorm2d(3), SelfPadding(3, 3, 3)]
    model = scatter(nn.Sequential(*(parts if first == "norm" else reversed(parts))))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert len(result.norms) == (first == "norm")
    assert_exact(result, model, x)


def test_weight_norm_is_folded_through():
    model = scatter(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert result.operators == ["conv2d"]
    assert_exact(result, model, x)


def test_synchronised_norm_is_a_norm():
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    assert_exact(result, model, x)


@pytest.mark.parametrize("scale", [0.0, -3.0])
@pytest.mark.parametrize("variance", [1e-7, 1e3])
def test_extreme_statistics(scale: float, variance: float):
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_var.fill_(variance)
    nn.init.constant_(model[1].weight, scale)
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert_exact(result, model, x)
    assert_bounded(result, model, x)


class Autocast(nn.Module):
    """Half precision inside forward: the statistics stay in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.norm(self.conv(x))


def test_half_precision_keeps_the_recorded_dtypes():
    model = scatter(Autocast())
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert not result.norms
    (layer,) = result.layers
    assert layer.weight.meta["val"].dtype == layer.bias.meta["val"].dtype == torch.bfloat16
    with torch.no_grad():
        expected, found = model(x), result.graph.to_module()(x)
        exact = model.norm(model.conv(x))
    assert found.dtype == expected.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_folding_leaves_the_model_alone():
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    rewrite(model, FoldBatchNorm(), torch.randn(2, 3, 6, 6))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])


def refusals(model: nn.Module, *inputs: Tensor, training: bool = False) -> list[str]:
    if not training:
        scatter(model)
    result = rewrite(model, FoldBatchNorm(), *inputs, training=training)
    assert result.norms
    assert not result.record.commits
    assert all(refused.culprit for refused in result.record.refused)
    return result.reasons


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert "the norm keeps no running statistics" in refusals(model, torch.randn(2, 3, 6, 6))


def test_training_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    graph = capture(model, (torch.randn(2, 3, 6, 6),), training=True).graph
    result = apply(graph, FoldBatchNorm())
    assert "the norm uses batch statistics" in result.reasons
    assert "eval()" in result.record.refused[0].remedy


def test_a_convolution_that_is_read_elsewhere_is_refused():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y.relu()

    model = Block(forward, conv=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3))
    assert any("is also read elsewhere" in reason for reason in refusals(model, torch.randn(2, 3, 6, 6)))


@pytest.mark.parametrize("padding", [1, (0, 1), "same"])
def test_the_zeros_of_padding_stand_between_a_norm_and_a_convolution(padding: int | tuple[int, int] | str):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding))
    assert any("pads with zeros after the norm" in reason for reason in refusals(model, torch.randn(2, 3, 6, 6)))


def test_a_transposed_convolution_after_the_norm_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 3))
    assert "the convolution is transposed" in refusals(model, torch.randn(2, 3, 6, 6))


def test_a_norm_that_is_read_elsewhere_is_refused():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.conv(y) + y

    model = Block(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    assert "batch_norm in 'norm' is also read elsewhere" in refusals(model, torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("first", ["norm", "linear"])
def test_a_norm_over_another_dimension_than_the_features_is_refused(first: str):
    parts = [nn.BatchNorm1d(5), nn.Linear(4, 4)]
    model = nn.Sequential(*(parts if first == "norm" else reversed(parts)))
    assert any("channels, dimension 1 of 3, are not" in reason for reason in refusals(model, torch.randn(3, 5, 4)))


def test_a_reshape_that_mixes_channels_is_refused():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(16))
    assert "flatten stands between the layer and the norm" in refusals(model, torch.randn(2, 3, 6))


def test_a_norm_of_something_else_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    assert "it follows neither a convolution nor a linear layer" in refusals(model, torch.randn(2, 3, 6, 6))


def test_a_kernel_that_depends_on_the_input_is_refused():
    def forward(self: Block, x: Tensor, w: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, w))

    reasons = refusals(Block(forward, norm=nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3))
    assert "the kernel depends on the input" in reasons


def test_statistics_that_depend_on_the_input_are_refused():
    def forward(self: Block, x: Tensor, mean: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), mean, torch.ones(4))

    reasons = refusals(Block(forward, conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 6, 6), torch.randn(4))
    assert "the norm's mean depends on the input" in reasons


def test_a_convolution_without_batch_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4))
    reasons = refusals(model, torch.randn(3, 6, 6))
    assert "the convolution's input has no batch dimension" in reasons


def test_a_cast_between_layer_and_norm_is_refused():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.bfloat16()).float())

    model = Block(forward, conv=nn.Conv2d(3, 4, 3).bfloat16(), norm=nn.BatchNorm2d(4))
    reasons = refusals(model, torch.randn(2, 3, 6, 6))
    assert "a conversion from bfloat16 to float32 stands between the layer and the norm" in reasons


def remedies(model: nn.Module, *inputs: Tensor) -> dict[str, str]:
    """Reasons with remedies, of a model in training mode."""
    result = rewrite(model.train(), FoldBatchNorm(), *inputs, training=True)
    return {refused.reason: refused.remedy for refused in result.record.refused}


def test_a_norm_is_told_to_evaluate_where_it_is_called():
    x = torch.randn(2, 3, 6, 6)
    reason = "the norm uses batch statistics"
    assert remedies(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x) == {reason: "call eval() on '1'"}
    assert remedies(nn.BatchNorm2d(3), x) == {reason: "call eval() on the model"}

    def forward(self: Block, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), torch.zeros(4), torch.ones(4), training=True)

    remedy = remedies(Block(forward, conv=nn.Conv2d(3, 4, 3)), x)[reason]
    assert remedy.startswith("pass training=False to batch_norm (test_fold_batch_norm.py:")


def test_a_kernel_that_training_writes_is_told_so():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).train()
    model[1].eval()
    result = rewrite(model, FoldBatchNorm(), torch.randn(2, 3, 6, 6), training=True)
    [refused] = result.record.refused
    assert refused.reason == "the kernel depends on what the call writes"
    assert refused.remedy.startswith("leave '0.parametrizations.weight.0._")


def test_a_kernel_with_noise_is_told_so():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, F.dropout(self.kernel, 0.5, self.training)))

    model = Block(forward, kernel=torch.randn(4, 3, 3, 3), norm=nn.BatchNorm2d(4))
    model.train().norm.eval()
    [refused] = rewrite(model, FoldBatchNorm(), torch.randn(2, 3, 6, 6), training=True).record.refused
    assert refused.reason == "the kernel depends on what is not known to be the same at each call"
    assert "dropout" in refused.remedy


def test_a_permutation_is_not_blamed_for_what_else_stands_between():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu())

    model = Block(forward, linear=nn.Linear(3, 4), norm=nn.BatchNorm2d(4))
    assert "relu stands between the layer and the norm" in refusals(model, torch.randn(2, 3, 6, 6))


def test_the_norm_of_joined_layers_goes_into_all_of_them():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.a(x), self.b(x)], 1))

    model = scatter(Block(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 2, 3), norm=nn.BatchNorm2d(6)))
    x = torch.randn(2, 3, 6, 6)
    result = rewrite(model, FoldBatchNorm(), x)
    assert result.operators == ["conv2d", "conv2d", "cat"]
    assert_exact(result, model, x)


def test_a_second_run_finds_nothing():
    result: Result = rewrite(
        scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), FoldBatchNorm(), torch.randn(2, 3, 6, 6)
    )
    assert len(result.record.commits) == 1
    assert not apply(result.graph, FoldBatchNorm()).record.commits
