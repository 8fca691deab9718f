"""Choices: offered without being made, and made where a pipeline names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node

import passes
from rewrite import Fidelity, Rule, explain, optimize, printer
from rewrite.api.arguments import recipe_of
from rewrite.flops import Sizes
from rewrite.gain import NOTHING, Work, work
from rewrite.graph import Graph
from rewrite.offers import offers
from rewrite.ops import Convolution, Linear
from rewrite.pattern import Call, Op, Var
from rewrite.pipeline import Pipeline, rules_of
from rewrite.plan import Plan
from rewrite.rule import Match, Refusal
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.programs import aten
from tests.toy_rules import OneRelu, Raises, chain, neg, relu, run


@dataclass(frozen=True)
class Scaled(Rule):
    """``relu(x) = s relu(x / s)``, but not of a negation."""

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    pattern = Call(relu, self=Var("x"))
    scale: float = 2.0

    def check(self, match: Match) -> Refusal | None:
        return Refusal("it is negated", match.x, "leave it") if match.x.target is neg else None

    def rewrite(self, match: Match, g: Any) -> Node:
        return g(aten.mul.Tensor, g(aten.clamp_min.default, g(aten.div.Tensor, match.x, self.scale), 0.0), self.scale)


@dataclass(frozen=True)
class Wrong(Scaled):
    def rewrite(self, match: Match, g: Any) -> Node:
        return g(aten.sigmoid.default, match.x)


@dataclass(frozen=True)
class AsMatrix(Rule):
    """A linear layer as a product with its transposed weight."""

    fidelity = Fidelity.ELEMENTWISE
    choice = True
    pattern = Op(Linear, "layer", bias=None)

    def rewrite(self, match: Match, g: Any) -> Node:
        return g(aten.mm.default, match.layer.input, g(aten.t.default, match.layer.weight))


def state(graph: Graph) -> Any:
    """All that a rewrite could change."""
    return printer.program(graph.nodes), printer.digest(graph), dict(graph.weights), [n.meta for n in graph.nodes]


def test_offers_are_verified_and_nothing_is_made():
    program, graph = chain(relu, aten.sin.default, relu, modules=("a", "b", "c"))
    before, expected = state(graph), program.run(graph)
    found = offers(graph, [Scaled()], MatchVerifier())
    assert state(graph) == before
    graph.check()
    assert torch.equal(program.run(graph)[0], expected[0])
    assert len(found) == 2
    assert not found.misses
    assert not found.failures
    assert found.offers[0].verdict.draws > 0
    for offer in found:
        assert offer.rule == Scaled()
        assert offer.verdict.accepted
        assert [line.split(":")[0] for line in offer.removed] == [offer.match.anchor.name]
        assert ["div(" in offer.added[0], "clamp_min(" in offer.added[1], "mul(" in offer.added[2]] == [True] * 3


def test_what_both_sides_cost():
    _, graph = chain(relu)
    [offer] = offers(graph, [Scaled()])
    assert offer.before == work(graph.calls(), Sizes(graph)) == Work(12, 96, offer.before.seconds)
    assert (offer.after.flops, offer.after.bytes) == (36, 3 * 96)
    assert offer.after.seconds == pytest.approx(3 * offer.before.seconds)


def test_weight_code_costs_nothing():
    graph = capture(nn.Linear(4, 6, bias=False).eval(), (torch.randn(3, 4),)).graph
    [offer] = offers(graph, [AsMatrix()], MatchVerifier())
    assert len(offer.added) == 2
    assert offer.before == offer.after != NOTHING


def test_both_sides_can_be_evaluated():
    _, graph = chain(relu)
    [offer] = offers(graph, [Scaled()])
    x = torch.randn(3, 4)
    values = dict.fromkeys(offer.old.inputs, x)
    torch.testing.assert_close(offer.new.evaluate(values), offer.old.evaluate(values))


def test_misses_and_failures_say_why():
    _, graph = chain(neg, relu, relu)
    found = offers(graph, [Scaled(), Wrong()], MatchVerifier())
    assert [offer.match.anchor.name for offer in found] == ["relu_default_1"]
    assert [(miss.rule, miss.refusal.reason) for miss in found.misses] == [
        ("scaled", "it is negated"),
        ("wrong", "it is negated"),
    ]
    [failure] = found.failures
    assert (failure.rule, failure.node.name) == ("wrong", "relu_default_1")
    assert "allowed" in failure.reason
    assert str(failure) == f"wrong at 'relu_default_1': {failure.reason}"


@pytest.mark.parametrize("where", ["find", "check", "rewrite", "count", "shape"])
def test_a_rule_that_fails_is_told_and_leaves_the_graph_alone(where: str):
    _, graph = chain(relu, relu)
    before = state(graph)
    found = offers(graph, [Raises(where), Scaled()])
    assert state(graph) == before
    assert len(found) == 2
    assert len(found.failures) == (1 if where == "find" else 2)
    assert all("raised" in failure.reason for failure in found.failures)


def test_what_is_excluded_is_left_alone():
    _, graph = chain(relu, relu, modules=("a", "b.c"))
    assert not offers(graph, [Scaled()], exclude=["scaled"]).misses
    found = offers(graph, [Scaled()], exclude=["b"])
    assert len(found) == 1
    assert [miss.refusal.reason for miss in found.misses] == ["module 'b.c' is excluded"]


def test_rules_that_are_no_choice_can_be_asked_too():
    _, graph = chain(relu, relu)
    [offer] = offers(graph, [OneRelu()])
    assert len(offer.removed) == 2
    assert len(offer.added) == 1


# -- pipelines --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "STEPS", (*passes.STEPS, AsMatrix))


@pytest.mark.parametrize("pipeline", [passes.default_pipeline(), passes.live_pipeline()], ids=["default", "live"])
def test_no_default_makes_a_choice(pipeline: Pipeline):
    assert not [rule.name for step in pipeline for rule in rules_of(step) if rule.choice]


MODEL = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)).eval()
X = torch.randn(3, 4)


@pytest.mark.usefixtures("registered")
def test_a_choice_that_is_named_is_made():
    fast = optimize(MODEL, X, pipeline="as-matrix, fold-constants", lower="eager")
    assert fast.report.pipeline == "as-matrix, fold-constants"
    assert [commit.rule for record in fast.report.records for commit in record.commits].count("as-matrix") == 2
    torch.testing.assert_close(fast(X), MODEL(X))
    again = optimize(MODEL, X, plan=Plan.from_json(fast.plan.to_json()), lower="eager")
    assert again.plan == fast.plan
    assert torch.equal(again(X), fast(X))
    parsed = passes.registry().parse("as-matrix, fold-constants")
    assert str(passes.registry().parse(str(parsed))) == str(parsed) == "as-matrix, fold-constants"


@pytest.mark.usefixtures("registered")
def test_a_choice_that_is_not_named_is_not_made_and_not_missed():
    assert "as-matrix" not in str(recipe_of(MODEL, None, ()).pipeline)
    fast = optimize(MODEL, X, lower="eager")
    assert not any(record.commits for record in fast.report.records)
    assert "as-matrix" not in {coverage.rule for coverage in explain(MODEL, X).coverage}
    assert explain(MODEL, X, "as-matrix").coverage[0].matched == 2
    assert explain(MODEL, X, pipeline="as-matrix").coverage[0].matched == 2


def test_a_choice_runs_in_the_worklist_of_its_own_step():
    _, graph = chain(relu, relu)
    [record] = run(graph, Scaled(), verifier=MatchVerifier())
    assert len(record.commits) == 2


def test_new_work_on_the_input_is_counted():
    model = nn.Conv2d(3, 4, 3).eval()
    graph = capture(model, (torch.randn(2, 3, 8, 8),)).graph
    [conv] = [node for node in graph.calls() if node.target is aten.conv2d.default]

    @dataclass(frozen=True)
    class Doubled(Rule):
        fidelity = Fidelity.ELEMENTWISE
        choice = True
        pattern = Op(Convolution, "conv")

        def rewrite(self, match: Match, g: Any) -> Node:
            conv = match.conv
            twice = g(aten.mul.Tensor, conv.weight, 2)
            return g(aten.conv2d.default, g(aten.div.Tensor, conv.input, 2), twice, conv.bias)

    [offer] = offers(graph, [Doubled()], MatchVerifier())
    assert offer.before == work([conv], Sizes(graph))
    assert offer.after.flops == offer.before.flops + 3 * 64
