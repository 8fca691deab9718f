"""Gates between two values as one interpolation, against the eager model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes import MergeSelection
from tests.passes.blocks import Block
from tests.passes.rewriting import apply, assert_exact, rewrite
from tests.programs import Program, aten

Forward = Callable[[Block, Tensor, Tensor], Tensor]
IMAGE, GATE = (3, 8, 6, 5), (3, 1, 6, 5)


def model(forward: Forward) -> Block:
    return Block(forward, p=nn.Conv2d(8, 4, 1), q=nn.Conv2d(8, 4, 3, padding=1), g=torch.rand(4, 1, 1)).eval()


MERGED: dict[str, Forward] = {
    "gate first": lambda self, x, a: a * self.p(x) + (1 - a) * self.q(x),
    "complement first": lambda self, x, a: self.p(x) * (1 - a) + self.q(x) * a,
    "negated": lambda self, x, a: a * self.p(x) + (-a + 1) * self.q(x),
    "one of each channel": lambda self, x, a: (g := a.mean((2, 3), keepdim=True)) * self.p(x) + (1.0 - g) * self.q(x),
    "a learned one": lambda self, x, a: self.g * self.p(x) + (1 - self.g) * self.q(x),
    "a function between": lambda self, x, a: a * self.p(x).relu() + (1 - a) * x[:, :4].tanh(),
    "complement read elsewhere": lambda self, x, a: a * self.p(x) + (b := 1 - a) * self.q(x) + b.square(),
    "negation read elsewhere": lambda self, x, a: a * self.p(x) + ((b := -a) + 1) * self.q(x) + b.exp(),
    "all of it read elsewhere": lambda self, x, a: a * self.p(x) + (c := (b := -a) + 1) * self.q(x) + b.exp() + c.exp(),
    "among other terms": lambda self, x, a: a * self.p(x) + (1 - a) * self.q(x) + x[:, :4],
}


@pytest.mark.parametrize("name", MERGED)
def test_four_operators_become_one(name: str):
    block, x = model(MERGED[name]), torch.randn(IMAGE)
    result = rewrite(block, MergeSelection(), x, torch.rand(GATE))
    assert len(result.record.commits) == 1
    assert result.operators.count("lerp") == 1
    assert "mul" not in result.operators
    assert "elsewhere" in name or not {"rsub", "neg"} & set(result.operators)
    for gate in (torch.rand(GATE), torch.rand(GATE).round(), 3 * torch.randn(GATE)):
        assert_exact(result, block, x, gate)


KEPT: dict[str, Forward] = {
    "another gate": lambda self, x, a: a * self.p(x) + (1 - a.square()) * self.q(x),
    "another sum": lambda self, x, a: a * self.p(x) + (2 - a) * self.q(x),
    "a difference": lambda self, x, a: a * self.p(x) - (1 - a) * self.q(x),
    "the same gate twice": lambda self, x, a: a * self.p(x) + a * self.q(x),
    "two complements": lambda self, x, a: (1 - a) * self.p(x) + (1 - a) * self.q(x),
    "divided": lambda self, x, a: self.p(x) / a + (1 - a) * self.q(x),
    "one product": lambda self, x, a: (1 - a) * self.q(x) + a,
}


@pytest.mark.parametrize("name", KEPT)
def test_other_sums_of_products_stay(name: str):
    result = rewrite(model(KEPT[name]), MergeSelection(), torch.randn(IMAGE), torch.rand(GATE) + 0.5)
    assert not result.record.commits
    assert not result.record.refused


def test_a_product_that_others_read_is_refused():
    def forward(self: Block, x: Tensor, a: Tensor) -> Tensor:
        return (left := a * self.p(x)) + (1 - a) * self.q(x) + left.square()

    result = rewrite(model(forward), MergeSelection(), torch.randn(IMAGE), torch.rand(GATE))
    assert not result.record.commits
    assert "is also read elsewhere" in result.reasons[0]


def test_a_value_that_depends_on_the_complement_is_refused_where_others_read_that():
    result = rewrite(model(lambda self, x, a: a * self.p(x * (b := 1 - a)) + b * self.q(x)), MergeSelection(),
                     torch.randn(IMAGE), torch.rand(GATE))  # fmt: skip
    assert not result.record.commits
    assert result.reasons == ["lies on a path that leaves the match and comes back"]


def test_a_gate_of_another_dtype_is_refused():
    result = rewrite(model(MERGED["gate first"]), MergeSelection(), torch.randn(IMAGE), torch.rand(GATE).double())
    [refused] = result.record.refused
    assert refused.reason == "one operand is torch.float32, the result torch.float64"
    assert refused.remedy == "convert conv2d in 'p' to torch.float64"


def test_a_closed_gate_keeps_the_digits_of_a_small_value_beside_a_large_one():
    g = Program()
    small, large = torch.randn(100), 1e8 * torch.randn(100)
    p, q, a = g.input(small), g.input(large), g.input(torch.ones(100))
    left = g(aten.mul.Tensor, a, p)
    total = g(aten.add.Tensor, left, g(aten.mul.Tensor, g(aten.rsub.Scalar, a, 1), q))
    graph = g.graph(total)
    result = apply(graph, MergeSelection())
    assert result.operators == ["lerp"]
    assert torch.equal(g.run(graph)[0], small)
    assert torch.equal(g.run(graph, small, large, torch.zeros(100))[0], large)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_halves(dtype: torch.dtype):
    half = model(MERGED["gate first"]).to(dtype)
    x, gate = torch.randn(IMAGE).to(dtype), torch.rand(GATE).to(dtype)
    result = rewrite(half, MergeSelection(), x, gate)
    assert result.record.commits
    assert result.graph.to_module()(x, gate).dtype == dtype
