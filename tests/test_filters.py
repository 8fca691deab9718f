"""``filters``: what is measured, before and after rewrites, and how it is told."""

from __future__ import annotations

import copy
import html
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, weight_norm

import rewrite
from rewrite import InputError, PipelineError, filters, optimize
from rewrite.filter_quality import FilterQuality
from rewrite.filter_quality import filter_quality as quality
from tests import corpus
from tests.measures import assert_alike, normal, orthogonality_by_loops

# -- layers without an example -----------------------------------------------------------------------------------------


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def by_name(layers: Any) -> dict[str, FilterQuality]:
    return {layer.name: layer for layer in layers}


def test_modules_of_every_kind() -> None:
    model = nn.ModuleDict({
        "a": nn.Conv1d(4, 6, 7), "b": nn.Conv2d(8, 8, 3, groups=8), "c": nn.Conv3d(2, 3, 3),
        "d": nn.ConvTranspose2d(4, 6, 3, groups=2), "e": nn.ConvTranspose1d(4, 3, 2), "f": nn.Linear(3, 4),
        "g": nn.Conv2d(3, 5, 1), "h": nn.Sequential(nn.ConvTranspose3d(2, 3, 2)),
    })  # fmt: skip
    found = by_name(filters(model).before)
    assert set(found) == {"a", "b", "c", "d", "e", "g", "h.0"}
    assert found["b"].groups == 8
    assert found["b"].filters == 8
    assert found["a"].shape == (6, 4, 7)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_by_output(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    rows = []
    for output in range(6):
        group, within = divmod(output, 6 // groups)
        inputs = range(group * (4 // groups), (group + 1) * (4 // groups))
        rows.append(torch.cat([layer.weight[c, within].flatten() for c in inputs]))
    [found] = filters(layer).before
    expected = orthogonality_by_loops(torch.stack(rows).detach().double().numpy())
    assert found.orthogonality == pytest.approx(expected)
    assert found.name == ""
    assert "(model)" in str(filters(layer))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        torch.rand(1)
        return torch.cat([weight[:4], 1e-3 * weight[4:]])


def test_parametrized_weights_are_computed() -> None:
    layer = nn.Conv2d(3, 8, 3)
    parametrize.register_parametrization(layer, "weight", Halved())
    model = nn.Sequential(layer, nn.ReLU()).train()
    state = torch.get_rng_state()
    report = filters(model)
    assert report.before[0].sparsity == 0.5
    assert not report.notes
    assert torch.equal(torch.get_rng_state(), state)


def test_spectral_norm_keeps_its_buffers() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))).train()
    before = weights_of(model)
    filters(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
def test_kernels_that_forward_computes_are_noted() -> None:
    model = nn.Sequential(Standardized(3, 8, 3), weight_norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3)).eval()
    first, second = filters(model).notes
    assert first.startswith("'0' (Standardized) may compute another kernel")
    assert second.startswith("'1' (Conv2d)")
    assert first.endswith("pass example_inputs, so that what forward computes is seen")
    seen = filters(model, torch.randn(1, 3, 12, 12))
    assert not seen.notes
    weight = model[0].weight.detach()
    expected = quality("0", weight - weight.mean((1, 2, 3), keepdim=True))
    assert_alike(by_name(seen.before)["0"], expected, 1e-9)


def test_shared_layers_once() -> None:
    layer, twin = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    twin.weight = layer.weight
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh(), twin).eval()
    assert [each.name for each in filters(model).before] == ["0"]
    assert len(filters(model, torch.randn(1, 4, 8, 8)).before) == 1


# -- layers of a call --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A convolution with a kernel of its own, one with a batch norm, one that is not used, and one of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(normal(6, 3, 3, 3))
        self.conv = nn.Conv2d(6, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.unused = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(functional.conv2d(x, self.kernel).relu()))

    def gated(self, x: Tensor) -> Tensor:
        kernel = self.kernel[:, :1] * x.mean()
        return functional.conv2d(functional.conv2d(x, self.kernel), kernel, groups=6)


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    model = Block().eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1e3, 1, 1, 1, 1, 1, 1, 1]))
    return model


def test_a_call_shows_functional_kernels_and_no_unused_ones(block: Block) -> None:
    report = filters(block, torch.randn(2, 3, 9, 9))
    assert {layer.name for layer in report.before} == {"kernel", "conv"}
    assert {layer.name for layer in filters(block).before} == {"conv", "unused"}
    assert_alike(by_name(report.before)["kernel"], quality("kernel", block.kernel), 0)


def test_batch_norms_are_folded_for_the_second_look(block: Block) -> None:
    report = filters(block, torch.randn(2, 3, 9, 9))
    assert by_name(report.before)["conv"].sparsity == 0
    assert by_name(report.after)["conv"].sparsity == 7 / 8
    scale = (block.norm.weight / (block.norm.running_var + block.norm.eps).sqrt()).reshape(-1, 1, 1, 1)
    assert_alike(by_name(report.after)["conv"], quality("conv", block.conv.weight * scale), 1e-6)
    assert "fold-constants" in report.pipeline


def test_what_runs_for_the_second_look(block: Block) -> None:
    x = torch.randn(2, 3, 9, 9)
    same = filters(block, x, pipeline="simplify")
    assert same.after == same.before
    assert "the same" in str(same)
    assert filters(block, x, exclude="norm", verify="off").after == same.before
    live = filters(block, x, pipeline="fold-batch-norm")  # not folded to a constant, but measured
    assert live.after[0].sparsity == 7 / 8


class Generated(nn.Module):
    """Two convolutions in a row whose kernels a common buffer, the largest of their tensors, shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(normal(4, 1, 1, 1))
        self.second = nn.Parameter(normal(4, 1, 1, 1, seed=1))
        self.register_buffer("shape", normal(4, 4, 3, 3, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(x, self.first * self.shape).relu(), self.second * self.shape)


def test_layers_keep_their_names_through_rewrites() -> None:
    """Whatever the folded weights are called, and the modules of the operators that rules made."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), Generated(), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(*layers).eval()
    report = filters(model, torch.randn(2, 4, 12, 12))
    assert [layer.name for layer in report.before].count("2") == 2
    assert sorted(layer.name for layer in report.before) == sorted(layer.name for layer in report.after)
    two, kept = nn.ModuleDict({"a": Generated(), "b": Generated()}), torch.randn(2, 4, 12, 12)
    two["b"].shape = two["a"].shape
    named = filters(nn.Sequential(two["a"], two["b"]).eval(), kept)
    assert {layer.name for layer in named.after} == {"0", "1"}
    assert by_name(named.after) == by_name(named.before)


def test_kernels_from_inputs_are_noted(block: Block) -> None:
    report = filters(block, torch.randn(2, 3, 12, 12), method="gated")
    assert [layer.name for layer in report.before] == [layer.name for layer in report.after] == ["kernel"]
    assert report.notes[-1].startswith("kernels that a call computes from its inputs have no values to measure: conv2d")
    assert "\nnote  kernels that a call" in str(report)


def test_keyword_arguments(block: Block) -> None:
    assert len(filters(block, example_kwargs={"x": torch.randn(2, 3, 9, 9)}).after) == 2


def test_the_model_is_not_changed(block: Block) -> None:
    before, flags = weights_of(block), [parameter.requires_grad for parameter in block.parameters()]
    x = torch.randn(2, 3, 9, 9)
    given, y = x.clone(), block(x)
    filters(block)
    filters(block, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in block.parameters()]
    assert not block.training
    assert torch.equal(block(x), y)
    assert torch.equal(x, given)
    training = copy.deepcopy(block).train()
    filters(training)
    assert all(module.training for module in training.modules())


@pytest.mark.corpus
def test_an_untrained_network_of_timm() -> None:
    model = corpus.randomize(corpus.load("resnet18"))
    report = filters(model, corpus.input_for(model))
    named = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert by_name(report.before) == by_name(filters(model).before)
    assert set(by_name(report.before)) == set(by_name(report.after)) == set(named)
    for layer in report.before:
        assert layer.shape == tuple(named[layer.name].weight.shape)
        assert layer.marks == (("random-like",) if layer.shape[2:] == (3, 3) else ())
    assert by_name(report.after)["conv1"] != by_name(report.before)["conv1"]


@pytest.mark.corpus
def test_merged_branches_are_one_layer() -> None:
    model = corpus.randomize(corpus.load("repvgg_a0"))
    report = filters(model, corpus.input_for(model), verify="off")
    assert len(report.before) == 2 * len(report.after) == 44
    merged = by_name(report.after)["stages.0.0.conv_kxk.conv"]
    fast = optimize(model, corpus.input_for(model), lower="eager", tune="off", verify="off")
    weight = fast.program()[1]["folded.stages.0.0.conv_kxk.conv.weight"]
    assert_alike(merged, quality("", weight), 1e-9)


# -- the report --------------------------------------------------------------------------------------------------------


def planted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5)), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[2].weight[:, 2:] = 1e-5
        model[3].weight.copy_(torch.randn(8, 8, 1, 1) * torch.ones(3, 3))
        model[4].weight.copy_(functional.avg_pool2d(torch.randn(8, 8, 5, 5), 3, stride=1))
    return model


def test_the_worst_come_first() -> None:
    report = filters(planted())
    assert [(layer.name, layer.marks) for layer in report.before] == [
        ("1", ("sparse", "low variety", "not orthogonal")),
        ("0", ("random-like",)),
        ("2", ("sparse",)),
        ("3", ("low variety",)),
        ("4", ()),
        ("5", ()),
    ]
    assert report.after is None


def test_printed() -> None:
    report = filters(planted())
    text = str(report)
    head, _, titles, first, *_ = text.splitlines()
    assert head == (
        "Sequential: 6 convolutions, 4 degenerate (2 sparse, 2 low variety, 1 random-like, 1 not orthogonal)"
    )
    assert titles.split() == [
        "layer", "kernel", "weights", "sparsity", "entropy", "dense", "variety", "random", "orthogonal",
    ]  # fmt: skip
    assert first.split()[:4] == ["1", "8x8x3x3", "576", "1.00"]
    assert first.endswith("0.00  sparse, low variety, not orthogonal")
    for mark in ("sparse", "low variety", "random-like", "not orthogonal"):
        assert f"\n{mark:<14}  " in text
    assert repr(report) == text
    assert html.escape(text) in report._repr_html_()
    healthy = str(filters(nn.Conv2d(3, 4, 1)))
    assert healthy.startswith("Conv2d: 1 convolution, none degenerate\n")
    assert "random-like" not in healthy


def test_many_healthy_layers_are_not_all_printed() -> None:
    report = filters(nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(50))))
    assert len(report.before) == 50
    assert "\n... and 10 smaller ones, not degenerate\n" in str(report)


def test_as_data(block: Block) -> None:
    report = filters(block, torch.randn(2, 3, 9, 9))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (data["format"], data["model"], len(data["before"]), len(data["after"])) == (1, "Block", 2, 2)
    assert data["before"][0]["marks"] == list(report.before[0].marks)
    assert filters(block).to_dict()["after"] is None


# -- what does not fit -------------------------------------------------------------------------------------------------


def broken(value: float) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    with torch.no_grad():
        model[1].weight[0, 0, 0, :2] = value
    return model


@pytest.mark.parametrize(("model", "message"), [
    (lambda: 3, r"int is not an nn\.Module; wrap the function"),
    (lambda: nn.Conv2d, r"Conv2d is a class, not a module; pass an instance"),
    (lambda: nn.Linear(2, 3), r"Linear has no convolution: it has no module of torch\.nn for one; pass example_inputs"),
    (lambda: broken(math.nan), r"'1' has 2 of 144 weights that are infinite or NaN; load finite ones"),
    (lambda: broken(-math.inf), r"'1' has 2 of 144 weights that are infinite or NaN; load finite ones"),
    (lambda: nn.Conv2d(3, 4, 3, device="meta"), "is on the meta device and has no values; load the weights first"),
    (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "'0' is not initialized; call the model once on an example"),
    (lambda: nn.ModuleDict({"a": nn.Conv2d(4, 0, 3)}), r"'a' has a kernel of shape \(0, 4, 3, 3\), without values"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:Lazy modules are a new feature")
def test_models_that_do_not_fit(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filters(model())


def test_calls_that_do_not_fit(block: Block) -> None:
    x = torch.randn(2, 3, 9, 9)
    with pytest.raises(InputError, match="Linear has no convolution: this call of it runs none"):
        filters(nn.Linear(9, 2).eval(), x)
    with pytest.raises(InputError, match="'1' has 2 of 144 weights"):
        filters(broken(math.inf), x)
    with pytest.raises(InputError, match=r"in training mode; call model\.eval"):
        filters(block.train(), x)
    block.eval()
    with pytest.raises(InputError, match=r"exclude='nrom' is no pass, rule or module.*did you mean 'norm'"):
        filters(block, x, exclude="nrom")
    with pytest.raises(InputError, match="verify='of' is not one of"):
        filters(block, x, verify="of")  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="simplfy"):
        filters(block, x, pipeline="simplfy")
    with pytest.raises(InputError, match="method='gatd' is no method of Block; did you mean 'gated'"):
        filters(block, x, method="gatd")
    with pytest.raises(InputError, match="filters needs the model itself, not a rewritten one"):
        filters(optimize(block, x, lower="eager", tune="off"))
    with pytest.raises(TypeError, match="epsilon"):
        filters(block, epsilon=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("given", [
    {"method": "gated"}, {"pipeline": "simplify"}, {"exclude": "norm"}, {"verify": "off"},
])  # fmt: skip
def test_what_needs_a_call(block: Block, given: dict[str, Any]) -> None:
    [(name, value)] = given.items()
    with pytest.raises(InputError, match=f"{name}={value!r} needs an example call; pass example_inputs too, or leave"):
        filters(block, **given)


def test_it_is_exported() -> None:
    assert rewrite.filters is filters
    assert "filters" in rewrite.__all__
