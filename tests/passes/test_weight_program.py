"""Folded weights are computed again from the model's own, with the same bits as folding from scratch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import passes
from passes.fold_constants import FoldConstants
from rewrite.driver import Driver
from rewrite.fragment import Builder
from rewrite.graph import Graph
from rewrite.ops import Product, value
from rewrite.pattern import Op, Var
from rewrite.rule import Fidelity, Match, Rule
from rewrite.trace import capture
from tests.passes.rewriting import scatter
from tests.programs import Program, aten, names, same_bits


def sources(graph: Graph) -> dict[str, Tensor]:
    return {name: graph.weights[name] for name in graph.program.sources}


def assert_current(graph: Graph) -> None:
    """The folded values are those that the program computes from the present sources."""
    found = graph.program.evaluate(sources(graph))
    assert found.keys() == graph.program.results.keys()
    for name, tensor in found.items():
        assert same_bits(tensor, graph.weights[name]), name
        assert tensor.stride() == graph.weights[name].stride(), name
        assert all(tensor.data_ptr() != source.data_ptr() for source in sources(graph).values())


class Positions(nn.Module):
    """Discrete weight code: a learned position decides, through floor, where a weight lands."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.w = nn.Parameter(torch.rand(64)), nn.Parameter(torch.randn(64))
        self.register_buffer("mask", torch.rand(10) < 0.7)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.floor(self.p * 10)  # in float64 some of these would fall on the other side
        kernel = torch.zeros(10).index_add(0, position.long().clamp(0, 9), self.w)
        return nn.functional.conv1d(x, torch.where(self.mask, kernel, 0.0).view(1, 1, 10), padding=3)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv1d(1, 4, 3))
        self.b = parametrizations.spectral_norm(nn.Conv1d(4, 4, 3))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.a(x).relu()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(1, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.norm1, self.norm2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.first(x)).relu() + self.norm2(self.second(x)).tanh()


class Spectrum(nn.Module):
    """An implicit filter and its transform."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        t = torch.linspace(0, 1, n)[:, None]
        kernel = self.net(t)[:, 0] * torch.exp(-3 * t[:, 0])
        return torch.fft.irfft(torch.fft.rfft(x, 2 * n) * torch.fft.rfft(kernel, 2 * n), 2 * n)[..., :n]


MODELS: list[Callable[[], nn.Module]] = [Positions, Normed, Tied, Spectrum]


def optimized(model: nn.Module, x: Tensor) -> Graph:
    graph = capture(model, (x,)).graph
    [*_, record] = Driver(graph).run(passes.default_pipeline())
    assert not record.rejections
    assert not any(graph.is_constant(node) for node in graph.calls())
    return graph


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_after_an_update_the_program_gives_what_folding_from_scratch_gives(kind):
    model = scatter(kind())
    x = torch.randn(2, 1, 32)
    graph = optimized(model, x)
    assert graph.program.results
    assert_current(graph)
    with torch.no_grad():
        torch.testing.assert_close(graph.to_module()(x), model(x), rtol=1e-4, atol=1e-5)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(1.7)
        fresh = optimized(model, x)
        again = graph.program.evaluate(sources(graph))
        assert set(again) == set(fresh.program.results)
        for name, found in again.items():
            assert same_bits(found, fresh.weights[name]), name
        torch.testing.assert_close(graph.to_module(again)(x), model(x), rtol=1e-4, atol=1e-5)


def test_discrete_weight_code_is_the_models_own_to_the_bit():
    # 0.7 in float32 is below 7/10; times ten float32 rounds it to 7, and float64 does not
    p = torch.arange(64) % 10 / 10
    assert not torch.equal(torch.floor(p * 10), torch.floor(p.double() * 10).float())
    model = Positions().eval()
    with torch.no_grad():
        model.p.copy_(p)
    x = torch.randn(2, 1, 32)
    graph = optimized(model, x)
    with torch.no_grad():
        assert same_bits(graph.to_module()(x), model(x))
        model.p.copy_(p.flip(0))
        again = graph.program.evaluate(sources(graph))
        assert same_bits(graph.to_module(again)(x), model(x))


# -- folding what was folded ------------------------------------------------------------------------------------------


class First(Rule):
    """Scales a weight by a number that no binary fraction equals, and marks that it has by a division."""

    fidelity = Fidelity.STRUCTURAL
    pattern = Op(Product, left=Var("x", lambda node: node.op == "placeholder"), right=Var("w"), divided=False)

    def rewrite(self, match: Match, g: Builder):
        return g(aten.div.Tensor, match.x, g(aten.mul.Tensor, match.w, 0.1))


class Second(Rule):
    """Scales it once more, and marks that by ``atan2``."""

    fidelity = Fidelity.STRUCTURAL
    pattern = Op(Product, left=Var("x", lambda node: node.op == "placeholder"), right=Var("w"), divided=True)

    def rewrite(self, match: Match, g: Builder):
        return g(aten.atan2.default, match.x, g(aten.mul.Tensor, match.w, 10.0 / 3.0))


def folded_twice(between: bool) -> tuple[Program, Graph]:
    program = Program()
    w = program.weight("w", torch.rand(1000))
    graph = program.graph(program(aten.mul.Tensor, program.input(torch.randn(1000)), w))
    steps = [First(), FoldConstants(), Second(), FoldConstants()] if between else [First(), Second(), FoldConstants()]
    for record in Driver(graph).run(steps):
        assert not record.rejections
        assert len(record.commits) == 1
    return program, graph


def test_a_second_fold_does_not_round_twice():
    _, once = folded_twice(between=False)
    program, twice = folded_twice(between=True)
    w = program.weights["w"] if "w" in program.weights else twice.weights["w"]
    twice.weights["w"] = w
    exact = (w.double() * 0.1 * (10.0 / 3.0)).float()
    rounded = ((w.double() * 0.1).float().double() * (10.0 / 3.0)).float()
    assert not torch.equal(exact, rounded)
    [name] = twice.program.results
    assert same_bits(twice.weights[name], exact)
    assert_current(twice)
    assert len(once.program.results) == 1
    assert names(twice) == ["atan2"]


def test_a_fold_that_was_folded_again_is_forgotten():
    _, graph = folded_twice(between=True)
    assert sorted(graph.weights) == sorted(["w", *graph.program.results])
    assert len(graph.program.results) == 1
    assert_current(graph.copy())


def test_the_models_own_code_reads_what_algebra_rounds_to():
    """Weight code over a folded value continues in the model's dtype, at the first fold and at every later one."""
    program = Program()
    w = program.weight("w", torch.rand(1000))
    algebra = program(aten.mul.Tensor, w, 0.1)
    coarse = program(aten.floor.default, program(aten.mul.Tensor, algebra, 1e6))
    large = program(aten.expand.default, coarse, [3000, 1000])
    graph = program.graph(program(aten.mul.Tensor, program.input(torch.randn(1000)), large))
    expected = graph.value(coarse)
    Driver(graph).run([FoldConstants(growth=1, floor=1)])
    assert names(graph) == ["expand", "mul"]
    Driver(graph).run([FoldConstants(growth=1e4)])
    assert names(graph) == ["mul"]
    [name] = graph.program.results
    assert same_bits(graph.weights[name][7], expected)
    assert_current(graph)


def test_sources_are_the_models_tensors_under_their_names():
    graph = optimized(scatter(Tied()), torch.randn(2, 1, 16))
    [weight] = [name for name in graph.program.sources if name.endswith(("t.weight", "d.weight"))]
    assert weight in ("first.weight", "second.weight")
    assert all(not name.startswith("folded.") for name in graph.program.sources)
    assert value(next(node for node in graph.nodes if node.op == "get_attr")).dtype == torch.float32
