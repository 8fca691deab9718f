"""Maps before layers: norms with their parameters, factors, shifts, and what stands between them and the layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldAffine
from rewrite.testing import Result, assert_rule
from rewrite.verify.operators import name_of
from tests.passes.blocks import Block, conv
from tests.passes.rewriting import scatter

Forward = Callable[[Block, Tensor], Tensor]


def folded(model: nn.Module, x: Tensor, matches: int = 1) -> Result:
    return assert_rule(FoldAffine(), hide_nothing(model), x, matches=matches, batches=(0, 1))


def kept(model: nn.Module, x: Tensor) -> list[tuple[str, str, str]]:
    result = assert_rule(FoldAffine(), hide_nothing(model), x, matches=0)
    return [(refused.rule, refused.reason, refused.remedy) for refused in result.record.refused]


def hide_nothing(model: nn.Module) -> nn.Module:
    """Norms over features, too, have parameters that are neither one nor zero."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d)):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return scatter(model)


def operators(result: Result) -> list[str]:
    live = [node for node in result.graph.calls() if not result.graph.is_constant(node)]
    return [name for node in live if (name := name_of(node)) and name != "sym_size"]


CHANNELS_LAST = (0, 2, 3, 1)
CHANNELS_FIRST = (0, 3, 1, 2)

NORMS: dict[str, tuple[nn.Module, nn.Module, Forward, list[str]]] = {
    "layer norm": (
        nn.LayerNorm(6), nn.Linear(6, 3), lambda self, x: self.layer(self.norm(x)), ["layer_norm", "linear"],
    ),
    "layer norm without bias": (
        nn.LayerNorm(6, bias=False), nn.Linear(6, 3, bias=False), lambda self, x: self.layer(self.norm(x)),
        ["layer_norm", "linear"],
    ),
    "layer norm of channels": (
        nn.LayerNorm(4), conv(4, 3, 2, stride=2),
        lambda self, x: self.layer(self.norm(x.permute(CHANNELS_LAST)).permute(CHANNELS_FIRST)),
        ["permute", "layer_norm", "permute", "conv2d"],
    ),
    "layer norm of whole images": (
        nn.LayerNorm([4, 5, 6]), nn.Linear(120, 3), lambda self, x: self.layer(self.norm(x).flatten(1)),
        ["layer_norm", "reshape", "linear"],
    ),
    "layer norm of columns and rows": (
        nn.LayerNorm([5, 6]), nn.Linear(30, 3), lambda self, x: self.layer(self.norm(x).flatten(2)),
        ["layer_norm", "reshape", "linear"],
    ),
    "layer norm and zeros, without bias": (
        nn.LayerNorm(4, bias=False), conv(4, 3, 3, padding=1),
        lambda self, x: self.layer(self.norm(x.permute(CHANNELS_LAST)).permute(CHANNELS_FIRST)),
        ["permute", "layer_norm", "permute", "conv2d"],
    ),
    "layer norm of one token": (
        nn.LayerNorm(6), nn.Linear(6, 3), lambda self, x: self.layer(self.norm(x).select(2, 0)),
        ["layer_norm", "select", "linear"],
    ),
    "layer norm of the mean token": (
        nn.LayerNorm(6), nn.Linear(6, 3), lambda self, x: self.layer(self.norm(x).mean((1, 2))),
        ["layer_norm", "mean", "linear"],
    ),
    "RMS norm": (nn.RMSNorm(6), nn.Linear(6, 3), lambda self, x: self.layer(self.norm(x)), ["rms_norm", "linear"]),
    "group norm": (
        nn.GroupNorm(2, 4), conv(4, 6, 3, groups=2), lambda self, x: self.layer(self.norm(x)),
        ["group_norm", "conv2d"],
    ),
    "instance norm": (
        nn.InstanceNorm2d(4, affine=True), conv(4, 6, 3), lambda self, x: self.layer(self.norm(x)),
        ["instance_norm", "conv2d"],
    ),
    "group norm of one channel": (
        nn.GroupNorm(1, 1), conv(1, 6, 3), lambda self, x: self.layer(self.norm(x.narrow(1, 0, 1))),
        ["slice", "group_norm", "conv2d"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_keeps_no_parameters(name: str):
    norm, layer, forward, expected = NORMS[name]
    result = folded(Block(forward, norm=norm, layer=layer), torch.randn(2, 4, 5, 6))
    assert operators(result) == expected
    normalised = next(node for node in result.graph.calls() if "norm" in name_of(node))
    assert [node.op for node in normalised.all_input_nodes] != ["get_attr"]
    assert len(normalised.all_input_nodes) == 1


def test_all_layers_that_read_a_norm_take_its_parameters():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.norm(x)
        return (self.q(y) @ self.k(y).mT).softmax(-1) @ self.v(y)

    model = Block(forward, norm=nn.LayerNorm(6), q=nn.Linear(6, 4), k=nn.Linear(6, 4, bias=False), v=nn.Linear(6, 5))
    result = folded(model, torch.randn(2, 5, 6))
    assert operators(result).count("linear") == 3


def test_halves_of_a_norm_go_to_two_layers():
    def forward(self: Block, x: Tensor) -> Tensor:
        a, b = self.norm(x).chunk(2, 1)
        return self.a(a) + self.b(b)

    model = Block(forward, norm=nn.BatchNorm2d(4), a=conv(2, 3, 1), b=conv(2, 3, 1, bias=False))
    assert "_native_batch_norm_legit_no_training" not in operators(folded(model, torch.randn(2, 4, 5, 6)))


MAPS: dict[str, tuple[nn.Module, Forward]] = {
    "a factor": (conv(4, 3, 3), lambda self, x: self.layer(x * self.vector)),
    "a factor before zeros": (conv(4, 3, 3, padding=1), lambda self, x: self.layer(x * self.vector)),
    "a divisor before zeros": (conv(4, 4, 3, padding=1, groups=2), lambda self, x: self.layer(x / self.vector)),
    "a number before zeros": (conv(4, 3, 3, padding="same"), lambda self, x: self.layer(x / 255)),
    "a negation before zeros": (conv(4, 3, 2, padding=1), lambda self, x: self.layer(-x)),
    "a factor before a transposed convolution": (
        nn.ConvTranspose2d(4, 6, 3, groups=2, padding=1), lambda self, x: self.layer(x * self.vector),
    ),
    "a factor before zeros by name": (conv(4, 3, 3), lambda self, x: self.layer(F.pad(x * self.vector, [1, 0, 2, 1]))),
    "a factor before reflections": (
        conv(4, 3, 3, padding=1, padding_mode="reflect"), lambda self, x: self.layer(x * self.vector),
    ),
    "a shift": (conv(4, 3, 3), lambda self, x: self.layer(x + self.vector)),
    "a shift without bias": (conv(4, 4, 3, groups=4, bias=False), lambda self, x: self.layer(x - self.vector)),
    "a shift from which it is subtracted": (conv(4, 3, 3), lambda self, x: self.layer(self.vector - x)),
    "a shift before reflections": (
        conv(4, 3, 3, padding=1, padding_mode="reflect"), lambda self, x: self.layer(x + self.vector),
    ),
    "a shift before a circle": (
        conv(4, 3, 3, padding=1, padding_mode="circular"), lambda self, x: self.layer(x + self.vector),
    ),
    "a shift before repeated borders": (
        conv(4, 3, 3, padding=1, padding_mode="replicate"), lambda self, x: self.layer(x + self.vector),
    ),
    "a number": (nn.Linear(6, 3), lambda self, x: self.layer(x - 0.5)),
    "a parameter of no dimensions": (nn.Linear(6, 3, bias=False), lambda self, x: self.layer(x + self.scalar)),
    "a product with a parameter": (nn.Linear(6, 3), lambda self, x: self.layer(self.scalar * x)),
    "a norm before reflections": (
        conv(4, 3, 3, padding=1, padding_mode="reflect"), lambda self, x: self.layer(self.norm(x)),
    ),
    "a norm flattened": (nn.Linear(120, 3), lambda self, x: self.layer(self.norm(x).flatten(1))),
    "a norm and a pool": (conv(4, 3, 1), lambda self, x: self.layer(F.avg_pool2d(self.norm(x), 2))),
    "a norm and a pool that counts no zeros": (
        conv(4, 3, 1),
        lambda self, x: self.layer(F.avg_pool2d(self.norm(x), 3, padding=1, count_include_pad=False)),
    ),
    "a norm and a global pool": (nn.Linear(4, 3), lambda self, x: self.layer(self.norm(x).mean((2, 3)))),
    "a norm shuffled": (
        conv(4, 3, 1), lambda self, x: self.layer(self.norm(x).unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)),
    ),
    "a norm of a part": (conv(2, 3, 1), lambda self, x: self.layer(self.norm(x)[:, 1:3])),
    "a factor summed up": (nn.Linear(4, 3), lambda self, x: self.layer((x * self.vector).sum((2, 3)))),
    "a shift and another term": (conv(4, 3, 1), lambda self, x: self.layer(x.tanh() - (x + self.vector))),
    "a numeric shift before zeros": (conv(4, 3, 3), lambda self, x: self.layer(F.pad(x + 3, [1, 1, 1, 1]))),
    "a numeric shift and another term before ones": (
        conv(4, 3, 3), lambda self, x: self.layer(F.pad(x.tanh() - (x + 3), [1, 1, 1, 1], value=1.0)),
    ),
    "a number before ones": (conv(4, 3, 3), lambda self, x: self.layer(F.pad(2 * x, [1, 1, 1, 1], value=1.0))),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_one_operator_less(name: str):
    layer, forward = MAPS[name]
    model = Block(forward, layer=layer, norm=nn.BatchNorm2d(4), vector=torch.randn(4, 1, 1), scalar=torch.tensor(0.7))
    result = folded(model, torch.randn(2, 4, 5, 6))
    assert not {"mul", "div", "neg", "add", "rsub", "_native_batch_norm_legit_no_training"} & set(operators(result))


def test_an_image_is_normalised_by_its_stem():
    model = Block(lambda self, x: self.stem((x - self.mean) / self.std), stem=conv(3, 4, 2, stride=2),
                  mean=torch.rand(3, 1, 1), std=torch.rand(3, 1, 1) + 0.5)  # fmt: skip
    result = folded(model, torch.rand(2, 3, 6, 6), matches=2)
    assert operators(result) == ["conv2d"]


RESPONSE_NORMS: dict[str, tuple[Forward, list[str]]] = {
    "as timm writes it": (
        lambda self, x: x + torch.addcmul(self.beta, self.gamma, x * response(x)), ["mul", "mul", "add", "conv2d"],
    ),
    "as its authors write it": (
        lambda self, x: self.gamma * (x * response(x)) + self.beta + x, ["mul", "mul", "add", "conv2d"],
    ),
    "as UniRepLKNet writes it": (
        lambda self, x: (self.gamma * response(x) + 1) * x + self.beta, ["mul", "add", "mul", "conv2d"],
    ),
    "with a coefficient": (
        lambda self, x: x + torch.addcmul(self.beta, self.gamma, x * response(x), value=0.3),
        ["mul", "mul", "mul", "add", "conv2d"],
    ),
}  # fmt: skip


def response(x: Tensor) -> Tensor:
    norm = x.norm(p=2, dim=(2, 3), keepdim=True)
    return norm / (norm.mean(1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("name", RESPONSE_NORMS)
def test_the_bias_of_a_response_norm_goes_into_the_layer_behind(name: str):
    forward, expected = RESPONSE_NORMS[name]
    model = Block(lambda self, x: self.layer(forward(self, x)), layer=conv(4, 3, 1), gamma=torch.randn(4, 1, 1),
                  beta=torch.randn(4, 1, 1))  # fmt: skip
    found = operators(folded(model, torch.randn(2, 4, 5, 6)))
    assert found[-len(expected) :] == expected


class LargeKernelBlock(nn.Module):
    """RepLKNet's block, whose norm its authors leave before the first pointwise convolution (Ding et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.inner = nn.BatchNorm2d(4), conv(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.large, self.second = conv(6, 6, 7, padding=3, groups=6, bias=False), conv(6, 4, 1, bias=False)
        self.large_norm, self.outer = nn.BatchNorm2d(6), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.first(self.norm(x))).relu()
        return x + self.outer(self.second(self.large_norm(self.large(y)).relu()))


def test_every_norm_of_a_large_kernel_block_folds():
    result = folded(LargeKernelBlock(), torch.randn(2, 4, 9, 8), matches=4)
    assert operators(result) == ["conv2d", "relu", "conv2d", "relu", "conv2d", "add"]


class WideBlock(nn.Module):
    """UniRepLKNet's block behind its merged kernel (Ding et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.norm = conv(4, 4, 5, padding=2, groups=4), nn.BatchNorm2d(4)
        self.wide, self.narrow, self.outer = nn.Linear(4, 8), nn.Linear(8, 4, bias=False), nn.BatchNorm2d(4)
        self.response, self.beta = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.gamma = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.wide(self.norm(self.kernel(x)).permute(0, 2, 3, 1)))
        norm = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = (self.response * norm / (norm.mean(-1, keepdim=True) + 1e-6) + 1) * y + self.beta
        return x + self.gamma[:, None, None] * self.outer(self.narrow(y).permute(0, 3, 1, 2))


def test_a_wide_block_keeps_its_layers_and_the_response():
    result = folded(WideBlock(), torch.randn(2, 4, 6, 5), matches=4)
    assert operators(result) == [
        "conv2d", "permute", "linear", "gelu", "linalg_vector_norm", "mul", "mean", "add", "div", "add", "mul",
        "linear", "permute", "add",
    ]  # fmt: skip


REFUSED: dict[str, tuple[Forward, str, str]] = {
    "also added": (
        lambda self, x: self.conv(y := self.norm(x)) + y, "batch_norm in 'norm' is also read elsewhere",
        "of a module of its own",
    ),
    "zeros of the convolution": (
        lambda self, x: self.padded(x + self.vector),
        "the convolution pads with zeros after the shift, which the shift would have moved",
        "set padding=0, or put the shift right behind it",
    ),
    "zeros by name": (
        lambda self, x: self.conv(F.pad(x + self.vector, [1, 1])),
        "pad adds constants behind the shift, which the shift would move", "come before the shift",
    ),
    "a pool that counts zeros": (
        lambda self, x: self.conv(F.avg_pool2d(self.norm(x), 3, padding=1)),
        "avg_pool2d adds constants behind the norm, which the norm would move", "come before the norm",
    ),
    "a pool that takes the largest": (
        lambda self, x: self.linear((x + self.vector).amax((2, 3))),
        "amax stands between the shift and the layer", "apply the shift behind amax",
    ),
    "rows instead of columns": (
        lambda self, x: self.columns(self.norm(x)), "the norm's channels, dimension 1 of 4, are not those of the layer",
        "flatten both to [N, C]",
    ),
    "a shift of rows": (
        lambda self, x: self.columns(x + self.vector),
        "the shift varies along other dimensions than the layer's channels",
        "let the shift vary along dimension 3 of what the layer reads",
    ),
    "bias of a norm before zeros": (
        lambda self, x: self.padded(self.groups(x)),
        "the convolution pads with zeros after the norm, which its bias would have moved",
        "set padding=0, or give the norm no bias",
    ),
    "a shift and its reflection": (
        lambda self, x: self.conv((y := x + self.vector) + y.flip(2)), "is also read elsewhere",
        "of a module of its own",
    ),
    "parameters of positions": (
        lambda self, x: self.columns(self.images(x)),
        "the norm's parameters vary along other dimensions than the layer's channels",
        "build the norm over the channels alone",
    ),
    "a shift before a transposed convolution": (
        lambda self, x: self.transposed(x + self.vector), "the convolution is transposed",
        "put the shift right behind it",
    ),
    "a kernel from the input": (
        lambda self, x: F.conv2d(x * self.vector, x[:, :, :2, :2]), "the kernel depends on the input",
        "compute it from parameters",
    ),
    "parameters of a norm from the input": (
        lambda self, x: self.columns(F.layer_norm(x, [6], x[0, 0, 0])), "the norm's weight depends on the input",
        "compute it from parameters",
    ),
    "a weight of two layers": (
        lambda self, x: self.columns(self.features(x)) + self.columns(x),
        "the layer's weight is also read elsewhere, and would be needed twice", "a weight of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_reasons_and_remedies(name: str):
    forward, reason, remedy = REFUSED[name]
    model = Block(
        forward, conv=conv(4, 4, 1), padded=conv(4, 4, 3, padding=1), transposed=nn.ConvTranspose2d(4, 4, 2),
        linear=nn.Linear(4, 4), columns=nn.Linear(6, 6), norm=nn.BatchNorm2d(4), groups=nn.GroupNorm(2, 4),
        features=nn.LayerNorm(6), images=nn.LayerNorm([5, 6]), vector=torch.randn(4, 1, 1),
    )  # fmt: skip
    found = kept(model, torch.randn(4, 4, 5, 6))
    [what] = [what for _, why, what in found if reason in why]
    assert remedy in what


SILENT: dict[str, Forward] = {
    "a gate": lambda self, x: self.conv(x * x.mean((2, 3), keepdim=True)),
    "an activation behind a norm": lambda self, x: self.conv(self.norm(x).relu()),
    "a sum with a norm": lambda self, x: self.conv(self.norm(x.tanh()) + x),
    "positions": lambda self, x: self.conv(x + self.positions),
    "a norm that is returned": lambda self, x: self.norm(x),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_no_layer_reads_is_not_spoken_of(name: str):
    model = Block(SILENT[name], conv=conv(4, 4, 1), norm=nn.BatchNorm2d(4), positions=torch.randn(4, 5, 6))
    rules = {rule for rule, _, _ in kept(model, torch.randn(2, 4, 5, 6))}
    assert not rules - {"fold-batch-norm-after"}


def test_integers_are_not_scaled_into_a_layer():
    """The division makes numbers of pixels; the layer cannot read them as they are."""
    model = Block(lambda self, x: self.layer(x / 255), layer=conv(4, 4, 1)).eval()
    result = assert_rule(FoldAffine(), model, torch.randint(0, 255, (2, 4, 5, 6), dtype=torch.uint8), matches=0)
    assert result.reasons == ["the product turns torch.uint8 into torch.float32"]


def test_a_second_look_is_not_needed_where_a_layer_changed():
    """A norm whose layer is mapped on both sides folds in one run, whichever is seen first."""

    def forward(self: Block, x: Tensor) -> Tensor:
        return (self.layer(self.norm(x).permute(0, 2, 3, 1)) * self.vector + 1).tanh()

    model = Block(forward, norm=nn.BatchNorm2d(4), layer=nn.Linear(4, 3), vector=torch.randn(3))
    assert operators(folded(model, torch.randn(2, 4, 5, 6), matches=3)) == ["permute", "linear", "tanh"]


def test_misses_name_every_operator_that_had_matched():
    model = Block(lambda self, x: self.layer(self.norm(x).flatten(2)), norm=nn.BatchNorm2d(4), layer=nn.Linear(30, 4))
    result = assert_rule(FoldAffine(), hide_nothing(model), torch.randn(2, 4, 5, 6), matches=0)
    [before] = [refused for refused in result.record.refused if refused.rule == "fold-batch-norm-before"]
    assert [line.partition(":")[0].split(" ")[0] for line in before.matched] == [
        "_native_batch_norm_legit_no_training", "getitem", "view", "linear",
    ]  # fmt: skip
