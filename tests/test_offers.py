"""Choices: offered without being made, and made where a pipeline names them."""

from __future__ import annotations

import copy
import html
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import passes
import rewrite
from rewrite import Fidelity, InputError, PipelineError, Rule, explain, optimize, printer
from rewrite.api.arguments import recipe_of
from rewrite.flops import Sizes
from rewrite.gain import NOTHING, Work, work
from rewrite.graph import Graph
from rewrite.offering import offers_in
from rewrite.ops import Convolution, Linear
from rewrite.pattern import Call, Op, Var
from rewrite.pipeline import ChoicePass, Pipeline, rules_of
from rewrite.plan import Plan
from rewrite.report import Offered
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
    found = offers_in(graph, [Scaled()], MatchVerifier())
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
    [offer] = offers_in(graph, [Scaled()])
    assert offer.before == work(graph.calls(), Sizes(graph)) == Work(12, 96, offer.before.seconds)
    assert (offer.after.flops, offer.after.bytes) == (36, 3 * 96)
    assert offer.after.seconds == pytest.approx(3 * offer.before.seconds)


def test_weight_code_costs_nothing():
    graph = capture(nn.Linear(4, 6, bias=False).eval(), (torch.randn(3, 4),)).graph
    [offer] = offers_in(graph, [AsMatrix()], MatchVerifier())
    assert len(offer.added) == 2
    assert offer.before == offer.after != NOTHING


def test_both_sides_can_be_evaluated():
    _, graph = chain(relu)
    [offer] = offers_in(graph, [Scaled()])
    x = torch.randn(3, 4)
    values = dict.fromkeys(offer.old.inputs, x)
    torch.testing.assert_close(offer.new.evaluate(values), offer.old.evaluate(values))


def test_misses_and_failures_say_why():
    _, graph = chain(neg, relu, relu)
    found = offers_in(graph, [Scaled(), Wrong()], MatchVerifier())
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
    found = offers_in(graph, [Raises(where), Scaled()])
    assert state(graph) == before
    assert len(found) == 2
    assert len(found.failures) == (1 if where == "find" else 2)
    assert all("raised" in failure.reason for failure in found.failures)


def test_what_is_excluded_is_left_alone():
    _, graph = chain(relu, relu, modules=("a", "b.c"))
    assert not offers_in(graph, [Scaled()], exclude=["scaled"]).misses
    found = offers_in(graph, [Scaled()], exclude=["b"])
    assert len(found) == 1
    assert [miss.refusal.reason for miss in found.misses] == ["module 'b.c' is excluded"]


def test_rules_that_are_no_choice_can_be_asked_too():
    _, graph = chain(relu, relu)
    [offer] = offers_in(graph, [OneRelu()])
    assert len(offer.removed) == 2
    assert len(offer.added) == 1


# -- of a model -------------------------------------------------------------------------------------------------------


class Blurred(nn.Module):
    """A layer, a convolution whose kernels are of rank one, and one at holes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blur = nn.Conv2d(8, 8, 7, groups=8)
        self.holes = nn.Conv2d(8, 8, 3, dilation=4)
        with torch.no_grad():
            self.blur.weight.copy_(torch.randn(8, 1, 7, 1) * torch.randn(8, 1, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.blur(x))
        return self.holes(x)


IMAGE = torch.randn(2, 3, 24, 24)


@pytest.fixture(scope="module")
def blurred() -> nn.Module:
    torch.manual_seed(0)
    return Blurred().eval()


def test_the_offers_of_a_model(blurred: nn.Module):
    state = copy.deepcopy(blurred.state_dict())
    found = rewrite.offers(blurred, IMAGE)
    assert isinstance(found, Offered)
    assert [(item.rule, item.place.module) for item in found] == [
        ("separate-kernel", "blur"),
        ("space-to-batch", "holes"),
    ]
    steps = [step() for step in passes.STEPS if not issubclass(step, ChoicePass)]
    assert set(found.rules) == {rule.name for step in steps for rule in rules_of(step) if rule.choice}
    assert found.pipeline == str(passes.default_pipeline())
    first, second = found
    assert first.after.seconds - first.before.seconds < second.after.seconds - second.before.seconds
    assert first.change == pytest.approx(first.after.seconds / first.before.seconds - 1)
    assert first.after.flops < first.before.flops
    assert first.draws > 0
    assert first.place.text == "x = torch.relu(self.blur(x))"
    assert all(torch.equal(blurred.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_table_says_where_what_it_costs_and_how_to_make_it(blurred: nn.Module):
    found = rewrite.offers(blurred, IMAGE)
    text = str(found)
    assert repr(found) == text
    [row] = [line for line in text.splitlines() if line.startswith("separate-kernel")]
    line = inspect.getsourcelines(Blurred.forward)[1] + 2
    assert row.endswith(f"({found[0].place.module}, test_offers.py:{line})")
    assert row.count("->") == 3
    assert f"{100 * found[0].change:+.0f} %" in row
    assert 'optimize(model, example_inputs, pipeline="default, separate-kernel, fold-constants")' in text
    assert html.escape(text) in found._repr_html_()
    fast = optimize(blurred, IMAGE, pipeline="default, separate-kernel, fold-constants", lower="eager", cache=False)
    assert [commit.rule for record in fast.report.records for commit in record.commits].count("separate-kernel") == 1
    assert not [node for node in fast.graph_module.graph.nodes if "svd" in str(node.target)]
    shown = str(found[0]).splitlines()
    assert shown[0] == f"@@ separate-kernel  blur (test_offers.py:{line}) @@ x = torch.relu(self.blur(x))"
    assert re.fullmatch(r"\+ \.\.\. \d+ operators on weights only", shown[2])


def test_refusals_of_a_model_can_be_read(blurred: nn.Module):
    found = rewrite.offers(blurred, IMAGE)
    assert f"refused in {len(found.refused)} places" in str(found)
    assert "separate-kernel, 1 x: its kernel has rank" in found.refusals()
    assert "stem" in found.refusals()


def test_rules_are_named_as_pipelines_are(blurred: nn.Module):
    found = rewrite.offers(blurred, IMAGE, "space-to-batch, merge-support", pipeline="simplify")
    assert found.rules == ("space-to-batch", "merge-support")
    assert [item.pipeline for item in found] == ['"simplify, space-to-batch, fold-constants"']
    found = rewrite.offers(blurred, IMAGE, [Scaled(scale=4.0), "space-to-batch"], verify="off")
    assert found.rules == ("scaled{scale=4.0}", "space-to-batch")
    assert {item.pipeline for item in found if item.rule == "scaled"} == {
        '["default", Scaled(scale=4.0), "fold-constants"]'
    }
    assert not found[0].draws
    with pytest.raises(PipelineError, match=r"no pass 'space-to-bach'; did you mean 'space-to-batch'\?"):
        rewrite.offers(blurred, IMAGE, "space-to-bach")


def test_what_is_excluded_is_not_offered(blurred: nn.Module):
    found = rewrite.offers(blurred, IMAGE, exclude=["blur", "space-to-batch"])
    assert not found
    assert "Blurred: no offers" in str(found)
    assert "space-to-batch" not in found.rules
    assert "module 'blur' is excluded" in found.refusals()


def test_a_rule_that_fails_is_in_the_table(blurred: nn.Module):
    found = rewrite.offers(blurred, IMAGE, [Wrong()])
    assert not found
    assert [item.rule for item in found.rejections] == ["wrong", "wrong"]
    assert "wrong at 'relu' failed: output 'relu' differs" in str(found)


def test_offers_as_data(blurred: nn.Module):
    data = rewrite.offers(blurred, IMAGE).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["alternatives"][0]["place"]["module"] == "blur"


def test_offers_are_asked_of_the_model_itself_in_evaluation_mode(blurred: nn.Module):
    with pytest.raises(InputError, match="offers needs the model itself"):
        rewrite.offers(optimize(blurred, IMAGE, lower="eager", cache=False), IMAGE)
    with pytest.raises(InputError, match="eval"):
        rewrite.offers(Blurred(), IMAGE)


def test_another_method_and_keywords(blurred: nn.Module):
    found = rewrite.offers(blurred, example_kwargs={"x": IMAGE}, method="forward", rules="space-to-batch")
    assert len(found) == 1


# -- pipelines --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "STEPS", (*passes.STEPS, AsMatrix))


@pytest.mark.parametrize("pipeline", [passes.default_pipeline(), passes.live_pipeline()], ids=["default", "live"])
def test_no_default_makes_a_choice(pipeline: Pipeline):
    steps = [step for step in pipeline if not isinstance(step, ChoicePass)]
    assert not [rule.name for step in steps for rule in rules_of(step) if rule.choice]


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

    [offer] = offers_in(graph, [Doubled()], MatchVerifier())
    assert offer.before == work([conv], Sizes(graph))
    assert offer.after.flops == offer.before.flops + 3 * 64
