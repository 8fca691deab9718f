"""Maps behind concatenated layers: each layer gets its slice, whatever the layers are, and nothing else changes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldAffine, FoldBatchNorm
from passes.fold_affine import FoldBehindConcatenation
from rewrite import optimize
from rewrite.driver import Refused
from rewrite.testing import Result, assert_rule
from rewrite.verify.operators import name_of
from tests import corpus
from tests.drawn import COSTLY
from tests.passes.blocks import NORMS, Block, conv
from tests.passes.rewriting import rewrite, scatter

Forward = Callable[..., Any]
NAME = FoldBehindConcatenation.name


def made(result: Result) -> list[str]:
    return [commit.rule for commit in result.record.commits]


def arithmetic(result: Result) -> set[str]:
    """The sums and products that depend on the input."""
    live = [node for node in result.graph.calls() if not result.graph.is_constant(node)]
    return {"mul", "div", "add", "sub", "rsub", "neg"} & {name_of(node) for node in live}


# -- every geometry ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A layer that keeps the size of its input of four channels, for any number of dimensions."""

    kind: str
    kernel: int
    width: int
    bias: bool

    def module(self, dims: int) -> nn.Module:
        if dims == 0:
            return nn.Linear(4, self.width, self.bias)
        groups = {"dense": 1, "transposed": 1, "depthwise": 4}.get(self.kind, 2)
        kinds: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d) if "transposed" in self.kind else (nn.Conv1d, nn.Conv2d)
        return kinds[dims - 1](4, groups * self.width, self.kernel, padding=self.kernel // 2, groups=groups,
                               bias=self.bias)  # fmt: skip


parts = st.builds(
    Part,
    st.sampled_from(["dense", "dense", "grouped", "depthwise", "transposed", "transposed with groups"]),
    st.sampled_from([1, 3, 5]), st.integers(1, 3), st.booleans(),
)  # fmt: skip

MAPS: dict[str, Forward] = {
    "norm": lambda self, y: self.norm(y),
    "norm without parameters": lambda self, y: self.plain(y),
    "factor": lambda self, y: y * self.scale,
    "divided": lambda self, y: y / self.scale,
    "shift": lambda self, y: y + self.shift,
    "minus": lambda self, y: self.shift - y,
    "shift with a coefficient": lambda self, y: torch.add(y, self.shift, alpha=0.3),
    "number": lambda self, y: y * 0.3,
    "negated": lambda self, y: -y,
    "plus a number": lambda self, y: y + 0.7,
    "parameter of no dimensions": lambda self, y: y * self.scalar,
    "plus a parameter of one element": lambda self, y: y + self.one,
    "norm and factor": lambda self, y: self.norm(y) * self.scale,
    "factor and number": lambda self, y: y * self.scale + 0.7,
}


class Joined(nn.Module):
    """Layers over one input, or over a piece of it each, joined along their channels, and a map."""

    def __init__(self, drawn: list[Part], dims: int, name: str, apart: bool) -> None:
        super().__init__()
        self.parts, self.apart = nn.ModuleList(part.module(dims) for part in drawn), apart
        self.function, self.axis = MAPS[name], 1 if dims else -1
        layers = list(self.parts)
        count = sum(layer.out_features if dims == 0 else layer.out_channels for layer in layers)
        self.norm, self.plain = NORMS[max(dims, 1)](count), NORMS[max(dims, 1)](count, affine=False)
        self.scale = nn.Parameter(torch.rand(count, *[1] * dims) + 0.5)
        self.shift, self.one = nn.Parameter(torch.randn(count, *[1] * dims)), nn.Parameter(torch.tensor([1.3]))
        self.scalar = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.split(4, self.axis) if self.apart else [x[:, :4]] * len(self.parts)
        joined = torch.cat([part(y) for part, y in zip(self.parts, inputs, strict=True)], self.axis)
        return self.function(self, joined)


@given(st.lists(parts, min_size=2, max_size=4), st.integers(0, 2), st.sampled_from(list(MAPS)), st.booleans(),
       st.integers(0, 99))  # fmt: skip
@COSTLY
def test_every_layer_gets_its_slice(drawn: list[Part], dims: int, name: str, apart: bool, seed: int):
    torch.manual_seed(seed)
    model = scatter(Joined(drawn, dims, name, apart))
    x = torch.randn(2, 4 * len(drawn), *(5, 6)[:dims])
    matches = 2 if " and " in name else 1
    result = assert_rule(FoldBehindConcatenation(), model, x, matches=matches, batches=(0, 1), polynomial=True)
    assert not result.norms
    assert not arithmetic(result)
    assert "cat" in result.operators
    assert len(result.layers) == len(drawn)


# -- what may stand between, and what else is special -----------------------------------------------------------------

FOLDED: dict[str, tuple[Forward, int]] = {
    "flattened": (lambda self, x: self.sequence_norm(torch.cat([self.a(x), self.b(x)], 1).flatten(2)), 1),
    "channels last": (
        lambda self, x: torch.cat([self.a(x), self.b(x)], 1).permute(0, 2, 3, 1) * self.vector, 1,
    ),
    "channels first again": (
        lambda self, x: self.norm(torch.cat([self.rows(x), self.lines(x)], -1).permute(0, 3, 1, 2)), 1,
    ),
    "heads": (
        lambda self, x: torch.cat([self.rows(x), self.lines(x)], -1).unflatten(-1, (3, 2)).transpose(-1, -2)
        * self.heads, 1,
    ),
    "averaged": (lambda self, x: torch.cat([self.a(x), self.b(x)], 1).mean((2, 3)) + self.vector, 1),
    "padded": (lambda self, x: F.pad(torch.cat([self.a(x), self.b(x)], 1), [1, 1]) * self.vector[:, None, None], 1),
    "a window": (lambda self, x: torch.cat([self.a(x), self.b(x)], 1)[:, :, 1:] * self.vector[:, None, None], 1),
    "negative dimension": (lambda self, x: self.norm(torch.cat([self.a(x), self.b(x)], -3)), 1),
    "three maps": (lambda self, x: -(self.norm(torch.cat([self.a(x), self.b(x)], 1)) * self.vector[:, None, None]), 3),
    "one part": (lambda self, x: self.norm(torch.cat([self.six(x)], 1)), 1),
    "one channel": (lambda self, x: self.one_norm(torch.cat([self.one(x)], 1)), 1),
    "one channel times a parameter": (lambda self, x: torch.cat([self.one(x)], 1) * self.vector[:1], 1),
    "matrices": (
        lambda self, x: torch.cat([torch.mm(x[0, 0], self.matrix), torch.addmm(self.vector[:2], x[0, 0], self.other)],
                                  1) * self.vector - self.vector, 2,
    ),
    "matrices over more dimensions": (
        lambda self, x: torch.cat([x @ self.matrix, x @ self.other], -1) * self.vector - self.vector, 2,
    ),
    "vectors": (lambda self, x: torch.cat([self.rows(x[0, 0, 0]), self.lines(x[0, 0, 0])]) * self.vector, 1),
    "over one of the parts": (lambda self, x: self.norm(torch.cat([self.a(x), self.b(x.tanh() + self.a2(x))], 1)), 1),
    "a weight of another layer": (
        lambda self, x: self.norm(torch.cat([self.a(x), self.b(x)], 1)).sum() * F.conv2d(x, self.a.weight), 1,
    ),
    "a layer that is called twice": (lambda self, x: self.norm(torch.cat([self.three(x), self.three(-x)], 1)), 1),
    "weight norm": (lambda self, x: self.norm(torch.cat([self.normed(x), self.b(x)], 1)), 1),
}  # fmt: skip


def block(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return scatter(Block(
        lambda self, x: forward(self, x), a=conv(4, 4, 3, padding=1), a2=conv(4, 4, 1), b=conv(4, 2, 1, bias=False),
        six=conv(4, 6, 1), one=conv(4, 1, 1), three=conv(4, 3, 1), wide=conv(4, 3, 1).double(),
        wider=conv(4, 3, 1).double(), normed=nn.utils.parametrizations.weight_norm(conv(4, 4, 1)),
        rows=nn.Linear(5, 4), lines=nn.Linear(5, 2), matrix=torch.randn(5, 4), other=torch.randn(5, 2),
        norm=nn.BatchNorm2d(6), small=nn.BatchNorm2d(4), one_norm=nn.BatchNorm2d(1), sequence_norm=nn.BatchNorm1d(6),
        token_norm=nn.BatchNorm1d(3), four_norm=nn.BatchNorm1d(4),
        vector=torch.rand(6) + 0.5, heads=torch.rand(2, 3) + 0.5, position=torch.rand(3, 5),
    ))  # fmt: skip


X = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FOLDED)
def test_it_folds(name: str):
    forward, matches = FOLDED[name]
    model = block(lambda self, x: forward(self, x).tanh())
    result = assert_rule(FoldBehindConcatenation(), model, X, matches=matches, batches=(0, 1))
    assert not result.norms


def test_what_is_returned_keeps_its_memory():
    model = block(lambda self, x: torch.cat([self.a(x), self.b(x)], 1)[:, :, 1:] * self.vector[:, None, None])
    [refused] = refusals(model)
    assert refused.reason == "the model returns the result, whose strides would change"


def test_weights_of_the_model_stay():
    model = block(FOLDED["a weight of another layer"][0])
    result = rewrite(model, FoldAffine(), X)
    assert made(result) == [NAME]
    assert any(layer.weight.op == "get_attr" and layer.weight.target == "a.weight" for layer in result.layers)


def test_half_precision_keeps_the_recorded_dtypes():
    def forward(self: Block, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.norm(torch.cat([self.a(x), self.b(x)], 1))

    model = block(forward)
    result = rewrite(model, FoldBatchNorm(), X)
    assert made(result) == [NAME]
    assert {layer.weight.meta["val"].dtype for layer in result.layers} == {torch.bfloat16}
    with torch.no_grad():
        expected, found = model(X), result.graph.to_module()(X)
        exact = model.norm(torch.cat([model.a(X), model.b(X)], 1))
    assert found.dtype == expected.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_channels_last():
    model = block(FOLDED["negative dimension"][0]).to(memory_format=torch.channels_last)
    assert_rule(FoldBehindConcatenation(), model, X.to(memory_format=torch.channels_last), matches=1)


# -- beside the other rules -------------------------------------------------------------------------------------------


def test_the_pass_of_norms_folds_norms_alone():
    assert made(rewrite(block(FOLDED["three maps"][0]), FoldBatchNorm(), X)) == [NAME]
    assert not made(rewrite(block(FOLDED["padded"][0]), FoldBatchNorm(), X))


def test_norms_of_parts_and_of_the_whole():
    model = block(lambda self, x: self.norm(torch.cat([self.small(self.a(x)), self.b(x)], 1)))
    assert made(rewrite(model, FoldAffine(), X)) == ["fold-batch-norm-after", NAME]


def test_a_map_of_the_bias_does_not_come_between():
    """It would stand between the convolution and the norm behind it."""
    layers = {"a": nn.Conv2d(4, 4, 3, 2, 1), "b": nn.Conv2d(4, 2, 1, 2), "first": nn.BatchNorm2d(4)}
    model = scatter(Block(lambda self, x, y: self.norm(torch.cat([self.a(self.first(x)), self.b(y)], 1)),
                          norm=nn.BatchNorm2d(6), **layers))  # fmt: skip
    result = assert_rule(FoldAffine(), model, (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)), batches=(0, 1))
    assert made(result) == [NAME, "fold-bias-map"]
    assert not result.norms


@pytest.mark.corpus
def test_mixnet_keeps_no_norm():
    model = corpus.load("mixnet_s")
    x = corpus.input_for(model)[..., :64, :64].contiguous()
    corpus.randomize(model, inputs=x)
    fast = optimize(model, x, tune="off", lower="eager", cache=False, verify="off")
    made = [commit.rule for record in fast.report.records for commit in record.commits]
    assert made.count(NAME) == 34
    assert not [node for node in fast.graph_module.graph.nodes if "batch_norm" in str(node.target)]


# -- refusals ---------------------------------------------------------------------------------------------------------


def refusals(model: nn.Module, x: Tensor = X) -> list[Refused]:
    result = assert_rule(FoldAffine(), model, x, matches=0)
    return result.record.refused


def here(text: str) -> str:
    return re.sub(r"\(test_\w+\.py:\d+\)", "(here)", text)


REFUSED: dict[str, tuple[Forward, str, str, Forward]] = {
    # the model, why not, what to do, and the model in which it is done
    "a part is read elsewhere": (
        lambda self, x: self.norm(torch.cat([y := self.a(x), self.b(x)], 1)).mean() + y.sin(),
        "conv2d in 'a' is also read elsewhere", "let sin (here) read the value of a module of its own",
        lambda self, x: self.norm(torch.cat([self.a(x), self.b(x)], 1)).mean() + self.a2(x).sin(),
    ),
    "a part is returned": (
        lambda self, x: (y := self.a(x), self.norm(torch.cat([y, self.b(x)], 1))),
        "conv2d in 'a' is also read elsewhere", "return the value of a module of its own",
        lambda self, x: (self.a2(x), self.norm(torch.cat([self.a(x), self.b(x)], 1))),
    ),
    "a part reads another": (
        lambda self, x: self.norm(torch.cat([y := self.a(x), self.b(y)], 1)),
        "conv2d in 'a' is also read elsewhere", "let conv2d in 'b' read the value of a module of its own",
        lambda self, x: self.norm(torch.cat([self.a(x), self.b(self.a2(x))], 1)),
    ),
    "the whole is read elsewhere": (
        lambda self, x: self.norm(y := torch.cat([self.a(x), self.b(x)], 1)) * y.sigmoid(),
        "cat (here) is also read elsewhere", "let sigmoid (here) read the value of batch_norm in 'norm'",
        lambda self, x: (z := self.norm(torch.cat([self.a(x), self.b(x)], 1))) * z.sigmoid(),
    ),
    "the same layer twice": (
        lambda self, x: self.norm(torch.cat([y := self.three(x), y], 1)),
        "cat joins the layer with itself, and each place would need other weights", "build a layer for each place",
        lambda self, x: self.norm(torch.cat([self.a(x), self.b(x)], 1)),
    ),
    "an activation among them": (
        lambda self, x: self.norm(torch.cat([self.a(x), self.b(x).relu()], 1)),
        "cat joins layers with what is neither a convolution nor a linear layer",
        "apply the norm to each part by itself, before cat (here)",
        lambda self, x: torch.cat([self.small(self.a(x)), self.b(x).relu()], 1),
    ),
    "the input among them": (
        lambda self, x: torch.cat([x, self.b(x)], 1) + self.vector[:, None, None],
        "cat joins layers with what is neither a convolution nor a linear layer",
        "apply the shift to each part by itself, before cat (here)",
        lambda self, x: torch.cat([x + self.vector[:4, None, None], self.b(x) + self.vector[4:, None, None]], 1),
    ),
    "along the width": (
        lambda self, x: self.norm(torch.cat([self.six(x), self.six(x.sin())], 3)),
        "cat joins along dimension 3, and the layer's channels are dimension 1",
        "apply the norm to the channels of each part, before cat (here)",
        lambda self, x: torch.cat([self.norm(self.six(x)), self.norm(self.six(x.sin()))], 3),
    ),
    "linear layers along the tokens": (
        lambda self, x: self.sequence_norm(torch.cat([self.rows(x[:, 0]), self.rows(x[:, 1])], 1)),
        "cat joins along dimension 1, and the layer's channels are dimension 2",
        "apply the norm to the channels of each part, before cat (here)",
        lambda self, x: torch.cat([self.four_norm(self.rows(y).transpose(1, 2)) for y in x.unbind(1)], 2),
    ),
    "a norm of tokens": (
        lambda self, x: self.token_norm(torch.cat([self.rows(x[:, 0]), self.lines(x[:, 0])], 2)),
        "the norm varies along other dimensions than the channels of the layers",
        "transpose between the two, so that the norm finds the channels",
        lambda self, x: self.sequence_norm(torch.cat([self.rows(x[:, 0]), self.lines(x[:, 0])], 2).transpose(1, 2)),
    ),
    "a wider part": (
        lambda self, x: torch.cat([self.three(x), self.wide(x.double())], 1) * self.vector.double()[:, None, None],
        "cat turns torch.float32 into torch.float64", "compute conv2d in 'three' in float64, weights and input",
        lambda self, x: torch.cat([self.wider(x.double()), self.wide(x.double())], 1)
        * self.vector.double()[:, None, None],
    ),
    "a kernel from the input": (
        lambda self, x: self.norm(torch.cat([self.a(x), F.conv2d(x, x[:, :, :1, :1])], 1)),
        "the kernel depends on the input", "compute it from parameters, not from input 'args_0'",
        lambda self, x: self.norm(torch.cat([self.a(x), self.b(x)], 1)),
    ),
    "a factor from the input": (
        lambda self, x: torch.cat([self.a(x), self.b(x)], 1) * x.sum((0, 2, 3))[[0, 1, 2, 3, 0, 1], None, None],
        "the factor depends on the input", "compute it from parameters, not from input 'args_0'",
        lambda self, x: torch.cat([self.a(x), self.b(x)], 1) * self.vector[:, None, None],
    ),
    "a wider factor": (
        lambda self, x: torch.cat([self.a(x), self.b(x)], 1) * self.vector.double()[:, None, None],
        "the product turns torch.float32 into torch.float64", "convert the factor to torch.float32",
        lambda self, x: torch.cat([self.a(x), self.b(x)], 1) * self.vector[:, None, None],
    ),
    "no batch": (
        lambda self, x: self.token_norm(torch.cat([self.a(x[0]), self.b(x[0])], 0)),
        "the convolution's input has no batch dimension", "add one with unsqueeze(0)",
        lambda self, x: torch.cat([self.a(x), self.b(x)], 1) * self.vector[:, None, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_reasons_and_remedies(name: str):
    forward, reason, remedy, mended = REFUSED[name]
    [refused] = refusals(block(forward))
    assert (refused.rule, here(refused.reason), here(refused.remedy)) == (NAME, reason, remedy)
    assert refused.culprit
    result = assert_rule(FoldAffine(), block(mended), X, batches=())
    assert {NAME, "fold-batch-norm-after", "fold-shift"} & set(made(result))


def test_a_norm_that_trains_is_refused_once():
    model = block(FOLDED["negative dimension"][0])
    model.norm.train()
    for step in (FoldAffine(), FoldBatchNorm()):
        [refused] = rewrite(model, step, X, training=True).record.refused
        assert (refused.rule, refused.reason) == (NAME, "the norm uses batch statistics")
        assert refused.remedy == "call eval() on 'norm'"


def test_a_norm_over_more_channels_is_not_one_of_the_layers():
    """Positions are among its channels."""
    model = block(lambda self, x: self.many(torch.cat([self.a(x), self.b(x)], 1).flatten(1, 2)))
    model.many = nn.BatchNorm1d(18)
    [refused] = refusals(scatter(model))
    assert (refused.rule, refused.reason) == (
        "fold-batch-norm-after", "it follows neither a convolution nor a linear layer"
    )  # fmt: skip


SILENT: dict[str, Forward] = {
    "positions": lambda self, x: torch.cat([self.a(x), self.b(x)], 1) + self.position,
    "some of the channels": lambda self, x: torch.cat([self.a(x), self.b(x)], 1)[:, :4] * self.vector[:4, None, None],
    "a shift behind zeros": lambda self, x: (
        F.pad(torch.cat([self.a(x), self.b(x)], 1), [1, 1]) + self.vector[:, None, None]
    ),
    "another dimension": lambda self, x: torch.cat([self.a(x), self.b(x)], 1) * self.vector[:5],
    "tokens in a row": lambda self, x: torch.cat([self.rows(x[:, 0]), self.rows(x[:, 1])], 1) + self.vector[:, None],
    "a gelu by its formula": lambda self, x: (
        (y := torch.cat([self.a(x), self.b(x)], 1)) * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    ),
    "a number behind an activation": lambda self, x: torch.cat([self.a(x), self.b(x).relu()], 1) * 0.5,
    "a number along the width": lambda self, x: torch.cat([self.six(x), self.six(x.sin())], 3) * 0.5,
    "no layers": lambda self, x: torch.cat([x.sin(), x.cos()], 1) * 0.5,
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_no_map_of_channels_is_not_spoken_of(name: str):
    assert not refusals(block(lambda self, x: SILENT[name](self, x).tanh()))


def test_a_norm_of_no_layers_is_told_what_it_follows():
    model = block(lambda self, x: self.norm(torch.cat([self.a(x).relu(), self.b(x).relu()], 1)))
    [refused] = refusals(model)
    assert refused.rule == "fold-batch-norm-after"
