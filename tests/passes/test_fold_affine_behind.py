"""Maps behind a layer, in all the ways in which attentions, mixers and heads put them there."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldAffine
from rewrite.driver import Driver
from rewrite.testing import Result, assert_rule
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from rewrite.verify.operators import name_of
from tests.passes.blocks import Block, conv
from tests.passes.rewriting import scatter

Forward = Callable[[Block, Tensor], Tensor]


def folded(model: nn.Module, x: Tensor, matches: int = 1) -> Result:
    return assert_rule(FoldAffine(), scatter(model), x, matches=matches, batches=(0, 1))


def kept(model: nn.Module, x: Tensor) -> list[tuple[str, str, str]]:
    result = assert_rule(FoldAffine(), scatter(model), x, matches=0)
    return [(refused.rule, refused.reason, refused.remedy) for refused in result.record.refused]


def arithmetic(result: Result) -> set[str]:
    """The sums and products that depend on the input."""
    live = [node for node in result.graph.calls() if not result.graph.is_constant(node)]
    return {"mul", "div", "add", "sub", "rsub", "neg"} & {name_of(node) for node in live}


PLAIN: dict[str, tuple[nn.Module, Forward]] = {
    "times a number": (conv(4, 6, 3), lambda self, x: self.layer(x) * 0.3),
    "a number first": (conv(4, 6, 3), lambda self, x: 2 * self.layer(x)),
    "divided by a number": (conv(4, 6, 3, bias=False), lambda self, x: self.layer(x) / 3),
    "negated": (conv(4, 6, 3), lambda self, x: -self.layer(x)),
    "times a parameter of no dimensions": (conv(4, 6, 3), lambda self, x: self.layer(x) * self.scalar),
    "divided by a parameter of one element": (conv(4, 6, 3), lambda self, x: self.layer(x) / self.one[:, None]),
    "plus a number": (conv(4, 6, 3), lambda self, x: self.layer(x) + 0.3),
    "plus a number without a bias": (conv(4, 6, 3, bias=False), lambda self, x: self.layer(x) - 2),
    "plus a vector": (conv(4, 6, 3), lambda self, x: self.layer(x) + self.vector[:, None, None]),
    "minus a vector": (conv(4, 6, 3, bias=False), lambda self, x: self.layer(x) - self.vector[:, None, None]),
    "a number minus": (conv(4, 6, 3), lambda self, x: 1 - self.layer(x)),
    "a vector minus": (conv(4, 6, 3), lambda self, x: self.vector[:, None, None] - self.layer(x)),
    "with a coefficient": (
        conv(4, 6, 3, bias=False),
        lambda self, x: torch.add(self.layer(x), self.vector[:, None, None], alpha=0.3),
    ),
    "plus a parameter of one element": (conv(4, 6, 3, bias=False), lambda self, x: self.layer(x) + self.one),
    "a transposed one with groups": (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda self, x: self.layer(x) * self.scalar + self.vector[:, None, None],
    ),
    "one output channel": (conv(4, 1, 3), lambda self, x: self.layer(x) * self.one),
    "a matrix": (nn.Linear(5, 6), lambda self, x: torch.mm(x[0, 0], self.layer.weight.T) * 2 + self.vector),
    "tokens times a matrix": (nn.Linear(5, 6), lambda self, x: x @ self.layer.weight.T * 2 + self.vector),
    "pooled": (conv(4, 6, 3), lambda self, x: F.avg_pool2d(self.layer(x), 2) * self.vector[:, None, None]),
    "averaged": (conv(4, 6, 3), lambda self, x: self.layer(x).mean((2, 3)) + self.vector),
    "padded": (conv(4, 6, 3), lambda self, x: F.pad(self.layer(x), [1, 1]) * self.vector[:, None, None]),
    "reflected": (
        conv(4, 6, 3),
        lambda self, x: F.pad(self.layer(x), [1, 1, 0, 1], "reflect") + self.vector[:, None, None],
    ),
    "rolled": (nn.Linear(5, 6), lambda self, x: self.layer(x).roll(1, 2).transpose(1, 2) * self.vector),
    "a window": (conv(4, 6, 3), lambda self, x: self.layer(x)[:, :, 1:3] * self.vector[:, None, None]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_one_operator_less(name: str):
    layer, forward = PLAIN[name]
    model = Block(
        lambda self, x: forward(self, x).tanh(),
        layer=layer, vector=torch.randn(6), scalar=torch.tensor(0.7), one=torch.tensor([1.3]),
    )  # fmt: skip
    x = torch.randn(2, 4, 7, 5)
    result = folded(model, x, matches=2 if "transposed" in name or "matrix" in name else 1)
    assert not arithmetic(result)


def heads(x: Tensor, count: int = 3) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(
    parts: Callable[[Block, Tensor], tuple[Tensor, Tensor, Tensor]],
    score: Callable[[Block, Tensor, Tensor], Tensor] = lambda self, q, k: (q * 0.3) @ k.mT,
) -> Forward:
    def forward(self: Block, x: Tensor) -> Tensor:
        q, k, v = parts(self, self.qkv(x))
        return score(self, q, k).softmax(-1) @ v

    return forward


def unbound(self: Block, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = y.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def selected(self: Block, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = y.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    return y[0], y[1], y[2]


def split(self: Block, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = y.split([12, 12, 12], -1)
    return heads(q), heads(k), heads(v)


def chunked_heads(self: Block, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each head has its own queries, keys and values beside each other."""
    q, k, v = heads(y).chunk(3, -1)
    return q, k, v


def sliced(self: Block, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return heads(y[..., :12]), heads(y[..., 12:24]), heads(y[..., -12:])


PARTS = {"unbound": unbound, "selected": selected, "split": split, "chunked heads": chunked_heads, "sliced": sliced}


@pytest.mark.parametrize("parts", PARTS)
def test_the_scale_of_queries_goes_into_their_rows_alone(parts: str):
    model = Block(attention(PARTS[parts]), qkv=nn.Linear(12, 36))
    result = folded(model, torch.randn(2, 5, 12))
    assert not arithmetic(result)


SCORES: dict[str, tuple[Callable[[Block, Tensor, Tensor], Tensor], int]] = {
    "queries divided": (lambda self, q, k: (q / math.sqrt(4)) @ k.mT, 1),
    "keys": (lambda self, q, k: q @ (k * 0.3).mT, 1),
    "keys behind their transposition": (lambda self, q, k: q @ (k.mT * 0.3), 1),
    "both": (lambda self, q, k: (q * 0.6) @ (k * 0.7).mT, 2),
    "scores": (lambda self, q, k: (q @ k.mT) * 0.3, 1),
    "scores divided": (lambda self, q, k: (q @ k.mT) / math.sqrt(4), 1),
    "scores by a parameter": (lambda self, q, k: (q @ k.mT) * self.scalar, 1),
    "one for each head": (lambda self, q, k: (q * self.head) @ k.mT, 1),
    "one for each head and channel": (lambda self, q, k: (q * self.each) @ k.mT, 1),
    "a shift of the queries": (lambda self, q, k: (q + self.each) @ k.mT, 1),
    "queries negated": (lambda self, q, k: (-q) @ k.mT, 1),
}


@pytest.mark.parametrize("name", SCORES)
def test_scales_and_shifts_of_an_attention(name: str):
    score, matches = SCORES[name]
    model = Block(
        attention(unbound, score), qkv=nn.Linear(12, 36), scalar=torch.tensor(0.3), head=torch.randn(3, 1, 1),
        each=torch.randn(1, 3, 1, 4),
    )  # fmt: skip
    result = folded(model, torch.randn(2, 5, 12), matches)
    assert not arithmetic(result)


def test_scores_of_layers_of_their_own():
    def forward(self: Block, x: Tensor) -> Tensor:
        return (heads(self.q(x)) @ heads(self.k(x)).mT * 0.3).softmax(-1)

    result = folded(Block(forward, q=nn.Linear(12, 12), k=nn.Linear(12, 12)), torch.randn(2, 5, 12))
    assert not arithmetic(result)


def test_scores_whose_queries_are_read_twice_scale_the_keys():
    def forward(self: Block, x: Tensor) -> Tensor:
        q, k, v = unbound(self, self.qkv(x))
        return ((q @ k.mT) * 0.3).softmax(-1) @ v + q

    result = folded(Block(forward, qkv=nn.Linear(12, 36)), torch.randn(2, 5, 12))
    assert "mul" not in arithmetic(result)


def test_scores_of_a_convolution():
    def forward(self: Block, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 3, 12, 15).split(4, 2)
        return (q.mT @ k * 0.3).softmax(-1) @ v.mT

    assert not arithmetic(folded(Block(forward, qkv=nn.Conv2d(12, 36, 1)), torch.randn(2, 12, 3, 5)))


def test_attention_of_torch_itself():
    model = Block(lambda self, x: self.attention(x, x, x)[0], attention=nn.MultiheadAttention(12, 3, batch_first=True))
    assert not arithmetic(folded(model, torch.randn(2, 5, 12)))


def test_keys_that_come_back_are_inside():
    """The scores read the keys through operators that a fold of the queries has to copy."""

    def forward(self: Block, x: Tensor) -> Tensor:
        q, k, v = unbound(self, self.qkv(x))
        k = torch.tanh(k).roll(1, 2)
        return ((q @ k.mT) * 0.3).softmax(-1) @ (v + k)

    assert "mul" not in arithmetic(folded(Block(forward, qkv=nn.Linear(12, 36)), torch.randn(2, 5, 12)))


class Swin(nn.Module):
    """Windows, shifted, and a scale of the queries (Liu et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.gamma = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(8))
        self.norm, self.bias = nn.LayerNorm(8), nn.Parameter(torch.randn(2, 9, 9))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).roll((-1, -1), (1, 2))
        y = y.reshape(-1, 2, 3, 2, 3, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 8)
        q, k, v = self.qkv(y).reshape(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = ((q * 0.5) @ k.mT + self.bias).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, 9, 8))
        y = y.reshape(-1, 2, 2, 3, 3, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, 6, 8)
        return x + self.gamma * y.roll((1, 1), (1, 2))


def test_windows():
    result = folded(Swin(), torch.randn(2, 6, 6, 8), matches=3)
    assert [commit.rule for commit in result.record.commits] == ["fold-norm-affine"] + ["fold-layer-scale"] * 2
    assert "mul" not in arithmetic(result)


def square(self: Block, x: Tensor) -> Tensor:
    y = self.layer(x)
    return (y @ y.mT) * 0.3


READ: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "as a whole": lambda self, y: y[..., :2] * self.vector + y.sum(-1, True),
    "overlapping": lambda self, y: y[..., :2] * self.vector + y[..., 1:3],
    "the same part": lambda self, y: y[..., :2] * self.vector + y[..., :2].exp(),
    "the same part of a part": lambda self, y: y.chunk(2, -1)[0][..., :2] * self.vector + y[..., :3].chunk(3, -1)[1],
    "a square": lambda self, y: (y @ y.mT) * 0.3,
}


@pytest.mark.parametrize("name", READ)
def test_channels_that_are_read_elsewhere_keep_their_rows(name: str):
    model = Block(lambda self, x: READ[name](self, self.layer(x)).tanh(), layer=nn.Linear(12, 6), vector=torch.randn(2))
    [(rule, reason, _)] = kept(model, torch.randn(2, 5, 12))
    assert rule == "fold-layer-scale"
    assert "is also read elsewhere" in reason


def test_a_part_that_nothing_else_reads_is_scaled_alone():
    """Rows of channels that nothing reads stay as they are."""
    model = Block(lambda self, x: (self.layer(x)[..., 1:3] * self.vector).tanh(), layer=nn.Linear(12, 6),
                  vector=torch.randn(2))  # fmt: skip
    result = folded(model, torch.randn(2, 5, 12))
    [layer] = result.layers
    weight = result.graph.value(layer.weight)
    assert torch.equal(weight[[0, 3, 4, 5]], model.layer.weight[[0, 3, 4, 5]])
    assert torch.equal(weight[1:3], model.layer.weight[1:3] * model.vector[:, None])


RETURNED: dict[str, tuple[Forward, str]] = {
    "a part": (lambda self, x: self.layer(x)[..., :2] * 2, "whose strides would change"),
    "a view of a part": (lambda self, x: (self.layer(x)[..., :2] * 2).mT, "whose strides would change"),
    "every part": (
        lambda self, x: tuple(part * 2 if i == 0 else part for i, part in enumerate(self.layer(x).unbind(0))),
        "linear in 'layer' is also read elsewhere",
    ),
    "a part of a vector": (
        lambda self, x: ((y := self.layer(x[0, 0]))[:2] * 2, y[2:]),
        "which would share memory",
    ),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_a_caller_has_does_not_change_its_memory(name: str):
    forward, reason = RETURNED[name]
    model = Block(forward, layer=nn.Linear(12, 6))
    x = torch.randn(2, 5, 12)
    [(_, found, _)] = kept(model, x)
    assert reason in found


def test_a_result_that_is_computed_further_may_be_a_part():
    model = Block(lambda self, x: (self.layer(x)[..., :2] * 2).exp(), layer=nn.Linear(12, 6))
    assert not arithmetic(folded(model, torch.randn(2, 5, 12)))


SILENT: dict[str, Forward] = {
    "positions": lambda self, x: self.layer(x) + self.position,
    "masks": lambda self, x: self.layer(x) * self.position,
    "rows": lambda self, x: self.layer(x) + self.position[:, :1],
    "a wider value by a number for each": lambda self, x: self.layer(x)[..., :1] + self.position[0],
    "a square": lambda self, x: self.layer(x) * self.layer(x),
    "a gelu by its formula": lambda self, x: (y := self.layer(x)) * 0.5 * (1 + torch.erf(y / math.sqrt(2))),
    "a number behind an activation": lambda self, x: self.layer(x).relu() * 0.5 + 1,
    "a power of a matrix": lambda self, x: ((y := self.layer(x)) @ y) * 0.3,
    "columns of a product": lambda self, x: (self.layer(x) @ x.mT) * self.position[0],
    "a number beside a product": lambda self, x: (self.layer(x) @ x.mT) + 0.5,
    "a reciprocal": lambda self, x: 2 / self.layer(x),
    "division by zero": lambda self, x: self.layer(x) / 0,
    "infinity": lambda self, x: self.layer(x) * math.inf - math.inf,
    "a wider value": lambda self, x: self.layer(x)[..., :1] * self.position[0],
    "no layer": lambda self, x: x * 0.3 + 1,
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_no_map_of_channels_is_not_spoken_of(name: str):
    model = Block(lambda self, x: SILENT[name](self, x).tanh(), layer=nn.Linear(6, 6), position=torch.randn(6, 6))
    assert not kept(model, torch.randn(2, 6, 6))


REFUSED: dict[str, tuple[Forward, str, str]] = {
    "a shift behind an activation": (
        lambda self, x: self.layer(x).relu() + self.vector,
        "relu stands between the layer and the shift", "apply the shift before relu",
    ),
    "a shift behind zeros": (
        lambda self, x: F.pad(self.layer(x), [0, 0, 1, 1]) + self.vector,
        "pad stands between the layer and the shift", "apply the shift before pad",
    ),
    "a wider shift": (
        lambda self, x: self.layer(x) + self.vector.double(), "the sum turns torch.float32 into torch.float64",
        "convert the shift to torch.float32",
    ),
    "a kernel from the input": (
        lambda self, x: F.linear(x, x[0, :6]) + self.vector, "the kernel depends on the input",
        "compute it from parameters",
    ),
    "a product with a bias": (
        lambda self, x: torch.addmm(self.vector, self.layer(x)[0], x[0].mT) * 0.5, "the kernel depends on the input",
        "compute it from parameters",
    ),
    "mixed channels": (
        lambda self, x: self.layer(x).reshape(2, 6, 5) * self.vector[:5],
        "reshape stands between the layer and the factor", "apply the factor, over 6 channels, before reshape",
    ),
    "a layer behind": (
        lambda self, x: self.layer(x).softmax(-1) * self.vector,
        "softmax stands between the layer and the factor", "apply the factor before softmax",
    ),
    "a factor from the input behind an activation": (
        lambda self, x: self.layer(x).relu() * x.mean((0, 1)), "the factor depends on the input",
        "compute it from parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_reasons_and_remedies(name: str):
    forward, reason, remedy = REFUSED[name]
    model = Block(lambda self, x: forward(self, x).tanh(), layer=nn.Linear(6, 6), vector=torch.randn(6))
    found = kept(model, torch.randn(2, 6 if "kernel" in name or "product" in name else 5, 6))
    assert [(why, what.startswith(remedy)) for _, why, what in found] == [(reason, True)]


def test_a_factor_that_overflows_half_precision_stays():
    """The product of a small result with a large number is finite, the scaled weight is not."""
    model = Block(lambda self, x: (self.layer(x) * 3e4).tanh(), layer=nn.Linear(4, 4)).half()
    with torch.no_grad():
        model.layer.weight.uniform_(2, 4)
        model.layer.bias.zero_()
    x = torch.full((2, 4), 2e-3, dtype=torch.float16)
    graph = capture(model.eval(), (x,)).graph
    [record] = Driver(graph, MatchVerifier()).run([FoldAffine()])
    assert not record.commits
    assert "inf" in record.rejections[0].reason
