"""Plans: the rewrites of a run, written down, read, and made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node

from rewrite import Fidelity, InputError, Pass, Pipeline, Plan, PlanError, RewriteError, Rule, optimize, transform
from rewrite.driver import Driver
from rewrite.listener import Listener
from rewrite.printer import digest
from rewrite.replay import Replay
from rewrite.rule import Match, Miss
from rewrite.verdict import Verdict
from tests.corpus import input_for, load, randomize
from tests.golden import models
from tests.programs import Program, aten, names
from tests.toy_rules import Both, OneRelu, Raises, chain, neg, relu

CHANNELS = {"ConvNet": 3, "RepVGG": 8, "MobileOne": 8, "FastViTMixer": 8}

ROOT = Path(__file__).parent.parent


def golden(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS[name], 8, 8)
    return randomize(getattr(models, name)().eval(), inputs=x), x


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return optimize(model, *args, lower="eager", **kwargs)


class Asked(Listener):
    """The rules that were asked: those that matched or missed."""

    def __init__(self) -> None:
        self.matched_rules: list[str] = []
        self.missed_rules: list[str] = []

    def matched(self, match: Match) -> None:
        self.matched_rules.append(match.rule.name)

    def missed(self, miss: Miss) -> None:
        self.missed_rules.append(miss.rule)


# -- the same program again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANNELS)
def test_a_replayed_plan_makes_the_same_program(name):
    model, x = golden(name)
    first = eager(model, x)
    plan = Plan.from_json(first.plan.to_json())
    assert plan == first.plan
    assert len(plan.decisions) == len(first.report.diff())
    asked = Asked()
    again = eager(model, x, plan=plan, listeners=[asked])
    assert again.plan == plan
    assert digest(again._engine.newest()[0].program.graph) == plan.after
    assert str(again.report.diff()) == str(first.report.diff())
    assert asked.matched_rules == [decision.rule for decision in plan.decisions]
    assert not asked.missed_rules
    assert again.report.model_verdict.accepted
    assert sum(record.draws for record in again.report.records) > 0
    assert "those of a plan" in again.report.notes[-1]
    assert torch.equal(again(x), first(x))


@pytest.mark.corpus
def test_a_plan_of_a_network_for_other_weights():
    """A plan holds decisions, not weights: another checkpoint of the same network takes it."""
    model, other = randomize(load("resnet18")), randomize(load("resnet18", seed=1), seed=1)
    x = input_for(model)[..., :64, :64].contiguous()
    plan = eager(model, x, verify="off").plan
    fast = eager(other, x, plan=plan.to_json())
    assert fast.plan == plan
    with torch.no_grad():
        found, eagerly, exact = fast(x), other(x), other.double()(x.double())
    assert (found - exact).abs().max() <= 4 * (eagerly - exact).abs().max()


def test_a_plan_in_another_process(tmp_path):
    model, x = golden("RepVGG")
    plan = eager(model, x).plan
    (tmp_path / "plan.json").write_text(plan.to_json())
    code = """
import sys
from rewrite import Plan, optimize
from tests.test_plan import golden
text = open(sys.argv[1]).read()
fast = optimize(*golden("RepVGG"), plan=text, lower="eager")
assert fast.plan == Plan.from_json(text)
assert optimize(*golden("RepVGG"), lower="eager").plan == fast.plan
print(fast.plan.after)
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == plan.after


def test_transform_replays_too():
    model, x = golden("RepVGG")
    plan = transform(model, x).plan
    step = transform(model, x, plan=plan)
    assert step.plan == plan
    gradients = [torch.autograd.grad(call(x).square().sum(), model.dense[0].weight)[0] for call in (step, model)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    with pytest.raises(RewriteError, match="holds for the present weights only"):
        transform(model, x, plan=eager(model, x).plan)


def test_exclusions_and_fuel_are_part_of_a_plan():
    model, x = golden("MobileOne")
    for options in ({"exclude": ["depth_skip", "merge-branches"]}, {"fuel": 3, "pipeline": "reparameterize"}):
        first = eager(model, x, **options)
        again = eager(model, x, plan=first.plan)
        assert again.plan == first.plan
        assert again.plan.exclude == tuple(first.plan.exclude)
        assert names(again._engine.newest()[0].graph) == names(first._engine.newest()[0].graph)


def test_other_sizes_of_images_are_searched():
    """The plan is for the sizes of its example; programs that the module captures later need another."""

    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x.reshape(x.shape[0], 3, 8, -1).clone())

    model = Sizes().eval()
    plan = eager(model, torch.randn(2, 3, 8, 8)).plan
    assert plan.decisions
    fast = eager(model, torch.randn(2, 3, 8, 8), plan=plan)
    larger = torch.randn(2, 3, 16, 8)
    torch.testing.assert_close(fast(larger), model(larger))
    reports = [special.program.report for special in fast._engine._snapshot.weights]
    assert ["plan's pipeline" in report.notes[-1] for report in reports] == [False, True]
    assert fast.plan == plan
    with pytest.raises(PlanError, match="the plan is for another program"):
        eager(model, larger, plan=plan)
    late = eager(model, plan=plan)
    with pytest.raises(PlanError, match="the plan is for another program"):
        late(larger)


def test_names_that_a_rejected_rewrite_took_are_no_matter():
    """A rewrite that is taken back leaves a gap in the names of later nodes, which a replay does not have."""

    @dataclass(frozen=True)
    class DropCopy(Rule):
        fidelity = Fidelity.BITWISE

        def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
            for node in dirty:
                if node.target is aten.clone.default:
                    yield Match(self, (node,), (node,))

        def rewrite(self, match: Match, g: Any) -> Node:
            return g(aten.alias.default, match.inputs[0])

    @dataclass(frozen=True)
    class Steps(Pass):
        def rules(self) -> tuple[Rule, ...]:
            return (DropCopy(), MergeAlias())

    @dataclass(frozen=True)
    class MergeAlias(Rule):
        fidelity = Fidelity.BITWISE

        def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
            for node in dirty:
                if node.target is aten.alias.default:
                    yield Match(self, (node,), (node,))

        def rewrite(self, match: Match, g: Any) -> Node:
            return match.inputs[0]

    program = Program()
    x = program.input(torch.randn(3))
    graph = program.graph(program(aten.clone.default, x), program(aten.sin.default, program(aten.clone.default, x)))
    searched, replayed = graph.copy(), graph.copy()
    records = Driver(searched).run([Steps()])
    assert records[0].rejections
    plan = plan_of([Steps()], records, graph, searched)
    assert plan.decisions[-1].node == "alias_1"
    replay = Replay(plan, replayed)
    [record] = Driver(replayed, strategy=replay).run([Steps()])
    replay.finish()
    assert record.commits[-1].node == "alias"


def plan_of(steps: list[Any], records: Any, before: Any, after: Any) -> Plan:
    return Plan.of(Pipeline(tuple(steps)), (), records, before, after)


# -- plans that do not fit --------------------------------------------------------------------------------------------


def toy() -> tuple[Any, Plan]:
    """A chain that two rules take turns at, and its plan."""
    _, graph = chain(relu, neg, neg, relu, neg, neg, relu)
    after = graph.copy()
    records = Driver(after).run([Both()])
    assert names(after) == ["relu"]
    return graph, plan_of([Both()], records, graph, after)


def replayed(graph: Any, plan: Plan, step: Any = None, **options: Any) -> None:
    replay = Replay(plan, graph)
    Driver(graph, strategy=replay, **options).run([step or Both()])
    replay.finish()


def test_the_decisions_of_a_toy():
    graph, plan = toy()
    assert [(d.step, d.rule) for d in plan.decisions] == [
        (0, "no-negation"), (0, "one-relu"), (0, "no-negation"), (0, "one-relu"),
    ]  # fmt: skip
    replayed(graph, plan)
    assert digest(graph) == plan.after


def edited(plan: Plan, number: int, **changes: Any) -> Plan:
    decisions = list(plan.decisions)
    decisions[number] = replace(decisions[number], **changes)
    return replace(plan, decisions=tuple(decisions))


MISFITS: dict[str, tuple[Any, str]] = {
    "removed": (lambda p: replace(p, decisions=p.decisions[:-1]), "the plan leads to another program"),
    "first removed": (lambda p: replace(p, decisions=p.decisions[1:]),
                      "decision 1 of the plan, 'one-relu' at 'relu_default_1', cannot be made: expected Clamp"),
    "reordered": (lambda p: replace(p, decisions=p.decisions[::-1]), "decision 1 of the plan, 'one-relu' at"),
    "another node": (lambda p: edited(p, 0, node="sin"), "decision 1 .* the program has no node 'sin'"),
    "another match": (lambda p: edited(p, 0, nodes=("relu_default",)), "the rule finds another match there"),
    "nothing there": (lambda p: edited(p, 0, node="x0", nodes=()), "the rule finds nothing there"),
    "another rule": (lambda p: edited(p, 0, rule="two-relu"), "'two-relu' at .* step 'both' has no such rule"),
    "more made": (lambda p: edited(p, 1, made=("a", "b")), "decision 2 .* it adds 1 nodes instead of 2"),
    "made twice": (lambda p: replace(p, decisions=p.decisions[:1] * 2), "decision 2 .* the program has no node 'neg_d"),
    "another step": (lambda p: edited(p, 3, step=2), "decision 4 .* its step, number 2, is over or is none"),
    "another program": (lambda p: replace(p, before="0" * 64), "the plan is for another program: its digest is 000000"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_plan_that_does_not_fit(case):
    graph, plan = toy()
    change, words = MISFITS[case]
    with pytest.raises(PlanError, match=words) as raised:
        replayed(graph, change(plan))
    assert str(raised.value).endswith("optimize the model without plan= and keep the plan of that result")
    assert "made with" not in str(raised.value)


def test_other_versions_are_named_where_a_plan_does_not_fit():
    graph, plan = toy()
    plan = replace(plan, before="0" * 64, versions={**plan.versions, "torch": "1.0"})
    with pytest.raises(PlanError, match=r"\(the plan was made with torch 1\.0\)"):
        replayed(graph, plan)


def test_the_order_of_rewrites_that_do_not_meet_is_free():
    program = Program()
    nodes = [program(relu, program(relu, program.input(torch.randn(3)))) for _ in range(2)]
    graph = program.graph(*nodes)
    # x1 is refused by the rule: call it otherwise
    graph.inputs[1].name = graph.inputs[1].target = "y"
    after = graph.copy()
    plan = plan_of([OneRelu()], Driver(after).run([OneRelu()]), graph, after)
    assert len(plan.decisions) == 2
    replayed(graph, replace(plan, decisions=plan.decisions[::-1]), OneRelu())


def test_a_rewrite_that_verification_rejects_now():
    class No:
        def verify(self, *args: Any) -> Verdict:
            return Verdict(False, "off by 3 ulp")

    graph, plan = toy()
    with pytest.raises(PlanError, match=r"decision 1 .* cannot be made: off by 3 ulp"):
        replayed(graph, plan, verifier=No())


def test_a_rule_that_fails_now():
    _, graph = chain(relu)
    after = graph.copy()
    plan = plan_of([Raises("find")], [], graph, after)
    decision = replace(toy()[1].decisions[0], rule="raises", node="relu_default", nodes=("relu_default",))
    with pytest.raises(PlanError, match="find raised KeyError: 'lost'"):
        replayed(graph, replace(plan, decisions=(decision,)), Raises("find"))


def test_a_plan_for_another_model():
    model, x = golden("RepVGG")
    plan = eager(model, x).plan
    for other in (golden("MobileOne")[0], models.RepVGG().eval().double()):
        with pytest.raises(PlanError, match="the plan is for another program"):
            eager(other, x.to(next(other.parameters()).dtype), plan=plan)


def test_a_plan_of_what_verification_would_have_rejected():
    model, x = golden("RepVGG")
    plan = eager(model, x).plan
    wrong = replace(plan, decisions=plan.decisions[:-1])
    with pytest.raises(PlanError, match="another program than it did"):
        eager(model, x, plan=wrong)
    with pytest.raises(PlanError, match="another program than it did"):
        eager(model, x, plan=wrong, verify="off")


# -- arguments and text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("pipeline", "simplify"), ("exclude", "simplify"), ("fuel", 3)])
def test_a_plan_beside_what_it_decides_itself(name, value):
    model, x = golden("RepVGG")
    _, plan = toy()
    with pytest.raises(InputError, match=f"plan= and {name}= are given"):
        eager(model, x, plan=plan, **{name: value})


def test_exclusions_that_are_not_known_here():
    model, x = golden("MobileOne")
    plan = eager(model, x, exclude=["depth_skip", "fold-batch-norm"]).plan
    assert "fold-batch-norm-after" in plan.exclude
    assert eager(model, x, plan=plan).plan == plan
    with pytest.raises(
        PlanError, match="the plan excludes 'depth_skp', which is no pass, rule or module of this model; "
    ):
        eager(model, x, plan=replace(plan, exclude=("depth_skp",)))
    with pytest.raises(PlanError, match="the plan excludes ''"):
        transform(model, x, plan=replace(plan, exclude=("",)))


def test_what_is_no_plan():
    model, x = golden("RepVGG")
    with pytest.raises(InputError, match="plan=3 is no plan"):
        eager(model, x, plan=3)


def test_a_step_that_is_not_known_here():
    model, x = golden("RepVGG")
    plan = eager(model, x, pipeline=OneRelu()).plan
    with pytest.raises(PlanError, match=r"cannot be run here: there is no pass 'one-relu'.*install the plug-in"):
        eager(model, x, plan=plan)


@dataclass(frozen=True)
class Edit:
    change: Any
    words: str


TEXTS = {
    "no JSON": Edit(lambda data: "{", "the plan is not JSON"),
    "too deep": Edit(lambda data: "[" * 100_000, "the plan is not JSON"),
    "no object": Edit(lambda data: "[1]", "has the format None, and this version reads format 1"),
    "another format": Edit(lambda data: {**data, "format": 2}, "has the format 2, and this version reads format 1"),
    "no pipeline": Edit(lambda data: {k: v for k, v in data.items() if k != "pipeline"}, "has None for 'pipeline'"),
    "no list": Edit(lambda data: {**data, "decisions": "all"}, "has 'all' for 'decisions', not a list"),
    "no decision": Edit(lambda data: {**data, "decisions": [3]}, "decision 1 has None for 'step', not a int"),
    "no names": Edit(lambda data: {**data, "exclude": [3]}, "'exclude' of the plan holds more than names"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_malformed_text(case):
    edit = TEXTS[case]
    text = edit.change(json.loads(toy()[1].to_json()))
    with pytest.raises(PlanError, match=edit.words) as raised:
        Plan.from_json(text if isinstance(text, str) else json.dumps(text))
    assert str(raised.value).count("; ") == 1


def test_a_plan_is_one_rewrite_a_line():
    _, plan = toy()
    text = plan.to_json()
    rows = [line for line in text.splitlines() if '"rule"' in line]
    assert len(rows) == len(plan.decisions)
    assert json.loads(rows[0].rstrip(","))["rule"] == "no-negation"
    empty = replace(plan, decisions=())
    assert Plan.from_json(empty.to_json()) == empty
