"""What is chosen when times are known: prices are written down, results are compared with the model."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import passes
import rewrite.trying
from codegen import Eager
from passes import FftConvolution, FoldConstants, LinearAsConvolution, Select, Simplify
from rewrite import optimize
from rewrite.api.arguments import target_of, tuning_of
from rewrite.compiler import Compiler
from rewrite.driver import Commit
from rewrite.errors import InputError
from rewrite.listener import Listener
from rewrite.ops import Convolution, Linear, view_as
from rewrite.pipeline import Pipeline
from rewrite.recipe import Recipe
from rewrite.report import Report
from rewrite.result import Program
from rewrite.select import Trial, Tuning
from rewrite.select.rehearsal import Rehearsal
from tests.select.scripted import Scripted

X = torch.randn(2, 3, 12, 12)
STEPS = Pipeline((Simplify(), Select(), Simplify(), FoldConstants()))


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole programs always pay; tests of that ask for something else."""
    monkeypatch.setattr(rewrite.trying, "compare", trial(2.0, 1.0))


def trial(before: float | None, after: float | None, noise: float = 0.0):
    """A comparison that comes out so."""
    return lambda *programs: Trial(before, after, noise, lambda inputs, weights: ())


def made(model: nn.Module, target: Scripted, x: Tensor = X, steps: Pipeline = STEPS, **settings) -> Program:
    """The program for a model on a scripted device, which agrees with the model in float64."""
    tuning = Tuning(Eager(), target, **settings)
    program = Compiler(model, Recipe(steps, tuning=tuning)).compile((x,), {})
    fast = program.graph.to_module(program.graph.weights)
    expected = model.double()(x.double())
    model.float()
    torch.testing.assert_close(fast(x).double(), expected, rtol=1e-4, atol=1e-5)
    return program


def rules(program: Program) -> list[str]:
    """The rules that rewrote something in steps that choose, in order."""
    return [commit.rule for record in program.report.records if record.name == "select" for commit in record.commits]


class Mlp(nn.Module):
    """Two linear layers over channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


def test_the_faster_alternative_is_made_where_it_is_faster():
    target = Scripted(price=lambda what, name: 0.5 if name == "linear-as-convolution" and "[24, 12]" in what else 1.0)
    program = made(Mlp().eval(), target)
    assert rules(program) == ["linear-as-convolution"]
    text = str(program.report)
    assert "1 x linear-as-convolution: as it is 1, linear-as-convolution 0.5 ms" in text
    assert str(Report.from_dict(json.loads(json.dumps(program.report.to_dict())))) == text
    kinds = [type(found) for node in program.graph.calls() for kind in (Convolution, Linear)
             if (found := view_as(node, kind)) is not None]  # fmt: skip
    assert kinds == [Convolution, Linear]


@pytest.mark.parametrize(("price", "noise", "taken"), [(0.96, 0.0, True), (0.98, 0.0, False), (0.96, 0.05, False)])
def test_an_alternative_has_to_be_faster_by_more_than_the_noise(price, noise, taken):
    target = Scripted(price=lambda what, name: price if name else 1.0, noise=noise)
    assert bool(rules(made(Mlp().eval(), target))) is taken


def test_a_busy_machine_keeps_what_is_there_and_says_so():
    program = made(Mlp().eval(), Scripted(price=lambda what, name: None))
    assert not rules(program)
    assert "the machine was too busy to measure 2 of 2 operators, which stay as they are" in str(program.report.notes)


def test_what_is_not_measured_in_time_stays_as_it_is():
    program = made(Mlp().eval(), Scripted(price=lambda what, name: 0.1 if name else 1.0), budget=0.0)
    assert not rules(program)
    assert "2 of 2 operators were not measured in 0 s" in " ".join(str(program.report).split())


def test_equal_operators_are_measured_once():
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(5))).eval()
    target = Scripted()
    made(model, target)
    assert len(target.asked) == 1


def test_measurements_are_of_the_sizes_of_the_call():
    target = Scripted()
    made(nn.Sequential(nn.Linear(12, 5)).eval(), target, torch.randn(3, 4, 6, 12))
    assert "float32[3, 4, 6, 12]" in target.asked[0]


class Net(nn.Module):
    """Three convolutions in a row, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        return (self.three(self.two(x).relu()) + 1).mean((2, 3))


def layouts(what: str) -> str:
    """Whether the input of what is measured has its channels last."""
    _, strides = what.split("float32")[1].split("]")[:2]
    _, c, _, _ = (int(n) for n in strides.strip("[").split(","))
    return "last" if c == 1 else "first"


def test_one_conversion_where_all_convolutions_gain_by_it():
    target = Scripted(price=lambda what, name: 0.5 if layouts(what) == "last" else 1.0)
    program = made(Net().eval(), target)
    assert rules(program) == ["channels-last"]
    assert program.report.records[1].commits[0].node == "conv2d"


def test_no_conversion_where_it_costs_more_than_it_saves():
    target = Scripted(price=lambda what, name: 0.9999999 if layouts(what) == "last" else 1.0)
    target.speeds = dataclasses.replace(target.speeds, converted=1e3, small=1e3)
    assert not rules(made(Net().eval(), target))


def test_a_convolution_that_loses_by_it_is_converted_back():
    def price(what: str, name: str) -> float:
        eight = "[2, 8, 8, 8]" in what.split("float32")[-2] or "float32[2, 8, 8, 8]" in what
        return 10.0 if (layouts(what) == "last") == eight else 1.0

    assert rules(made(Net().eval(), Scripted(price=price)))[:1] == ["channels-last"]
    assert "channels-first" in rules(made(Net().eval(), Scripted(price=price)))


def test_what_does_not_pay_as_a_whole_is_not_made(monkeypatch):
    monkeypatch.setattr(rewrite.trying, "compare", trial(1.0, 1.01))
    program = made(Mlp().eval(), Scripted(price=lambda what, name: 0.1 if name else 1.0))
    assert not rules(program)
    assert "does not pay as a whole: 1 ms before, 1.01 ms after" in str(program.report.notes)
    assert [choice.chosen for choice in program.report.choices] == ["", ""]
    assert "chosen by the time" not in str(program.report)


def test_a_comparison_that_fails_leaves_things_as_they_are(monkeypatch):
    def fail(*programs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(rewrite.trying, "compare", fail)
    program = made(Mlp().eval(), Scripted(price=lambda what, name: 0.1 if name else 1.0))
    assert not rules(program)
    assert "no compiler" in str(program.report.notes)


@pytest.mark.parametrize(("before", "after", "noise", "pays"),
                         [(2.0, 1.0, 0.1, True), (1.0, 0.95, 0.1, False), (None, None, 0.0, False)])  # fmt: skip
def test_a_trial(before, after, noise, pays):
    assert trial(before, after, noise)().pays is pays


def test_the_plan_of_a_choice_is_made_again_without_measuring():
    model = Mlp().eval()
    program = made(model, Scripted(price=lambda what, name: 0.1 if name else 1.0))
    assert len(rules(program)) == 2
    again = optimize(model, X, plan=program.plan, lower="eager")
    assert again.plan.decisions == program.plan.decisions


def test_without_tuning_nothing_is_made():
    program = Compiler(Mlp().eval(), Recipe(STEPS)).compile((X,), {})
    assert not rules(program)


def test_excluded_rules_are_not_asked():
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    recipe = Recipe(STEPS, ("linear-as-convolution",), tuning=Tuning(Eager(), target))
    assert not rules(Compiler(Mlp().eval(), recipe).compile((X,), {}))
    assert not any("linear-as-convolution" in what for what in target.asked)


def test_a_long_convolution_is_transformed_where_that_is_faster():
    model = nn.Sequential(nn.Conv1d(4, 4, 101, padding=50, groups=4)).eval()
    target = Scripted(price=lambda what, name: 0.5 if name == FftConvolution.name else 1.0)
    program = made(model, target, torch.randn(2, 4, 300))
    assert rules(program) == ["fft-convolution"]
    assert "hears of the future" in str(program.report.notes)


def test_an_alternative_that_cannot_be_run_is_left_out(monkeypatch):
    class Picky(Eager):
        def rehearse(self, module):
            if any(view_as(node, Convolution) for node in module.graph.nodes):
                raise RuntimeError("no kernel")
            return super().rehearse(module)

    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    recipe = Recipe(STEPS, tuning=Tuning(Picky(), target))
    assert not rules(Compiler(Mlp().eval(), recipe).compile((X,), {}))
    assert target.asked


def test_the_key_of_a_rehearsal_has_sizes_strides_and_weights():
    module = torch.fx.symbolic_trace(nn.Identity())
    keys = {Rehearsal(module, (value,)).key for value in (
        X, X.to(memory_format=torch.channels_last), X.double(), X[:1], 3,
    )}  # fmt: skip
    assert len(keys) == 5


@pytest.mark.parametrize(("tune", "budget", "message"), [
    ("fast", None, "tune='fast' is not one of 'off', 'quick', 'full'"),
    (None, -1, "budget=-1 is no number of seconds"),
    (None, "5", "budget='5' is no number of seconds"),
])  # fmt: skip
def test_bad_arguments(tune, budget, message):
    with pytest.raises(InputError, match=message):
        optimize(Mlp().eval(), X, tune=tune, budget=budget)


def test_the_environment_stands_for_tune(monkeypatch):
    monkeypatch.setenv("TORCH_REWRITE_TUNE", "full")
    found = tuning_of(None, None, Eager(), target_of(None))
    assert found is not None
    assert found.tune == "full"
    assert target_of("off") is None
    assert tuning_of("off", None, Eager(), None) is None
    monkeypatch.setenv("TORCH_REWRITE_TUNE", "sometimes")
    with pytest.raises(InputError, match="TORCH_REWRITE_TUNE='sometimes' is not one of"):
        target_of(None)


def test_keys_of_programs_tell_tunings_apart():
    steps = passes.default_pipeline()
    tunings = [Tuning(Eager(), Scripted(), tune) for tune in ("quick", "full")]
    texts = {Recipe(steps, tuning=tuning).settings().tuning for tuning in (*tunings, None)}
    assert len(texts) == 3
    assert Recipe(Pipeline((LinearAsConvolution(),)), tuning=tunings[0]).settings().tuning == ""


def test_an_empty_example_chooses_nothing():
    assert Tuning(Eager(), Scripted()).selection([torch.randn(0, 3)]) is None
    assert Tuning(Eager(), Scripted()).selection([torch.randn(2, 3, device="meta")]) is None


def test_fuel_holds_for_choices():
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    recipe = Recipe(STEPS, fuel=1, tuning=Tuning(Eager(), target))
    assert rules(Compiler(Mlp().eval(), recipe).compile((X,), {})) == ["linear-as-convolution"]


def test_random_numbers_of_the_caller_are_left_alone():
    model = Mlp().eval()
    recipe = Recipe(STEPS, verify="off", tuning=Tuning(Eager(), Scripted()))
    state = torch.get_rng_state()
    Compiler(model, recipe).compile((X,), {})
    assert torch.equal(torch.get_rng_state(), state)


def test_where_one_conversion_is_excluded_nothing_is_converted():
    target = Scripted(price=lambda what, name: 0.5 if layouts(what) == "last" else 1.0)
    recipe = Recipe(STEPS, ("channels-last",), tuning=Tuning(Eager(), target))
    assert not rules(Compiler(Net().eval(), recipe).compile((X,), {}))


def test_excluded_modules_are_left_alone():
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    recipe = Recipe(STEPS, ("one",), tuning=Tuning(Eager(), target))
    program = Compiler(Mlp().eval(), recipe).compile((X,), {})
    assert [choice.module for choice in program.report.choices] == ["two"]
    assert rules(program) == ["linear-as-convolution"]


def test_without_fuel_nothing_is_measured():
    target = Scripted()
    Compiler(Mlp().eval(), Recipe(STEPS, fuel=0, tuning=Tuning(Eager(), target))).compile((X,), {})
    assert not target.asked


def test_listeners_hear_of_rewrites_once_where_choices_are_dropped(monkeypatch):
    class Hearing(Listener):
        heard: ClassVar[list[str]] = []

        def committed(self, commit: Commit) -> None:
            self.heard.append(commit.rule)

    monkeypatch.setattr(rewrite.trying, "compare", trial(1.0, 2.0))
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    recipe = Recipe(STEPS, listeners=(Hearing(),), tuning=Tuning(Eager(), target))
    Compiler(Mlp().eval(), recipe).compile((X,), {})
    assert Hearing.heard.count("linear-as-convolution") == 2


@pytest.mark.parametrize(("price", "outcome", "tentative"), [
    (1.0, (2.0, 1.0), False), (0.1, (2.0, 1.0), False), (0.1, (1.0, 2.0), False), (0.1, (None, None), True),
    (None, (2.0, 1.0), True),
])  # fmt: skip
def test_what_was_not_measured_is_not_kept_for_other_processes(monkeypatch, price, outcome, tentative):
    monkeypatch.setattr(rewrite.trying, "compare", trial(*outcome))
    program = made(Mlp().eval(), Scripted(price=lambda what, name: price if name or price is None else 1.0))
    assert bool(program.tentative) is tentative


def test_pieces_of_a_split_lie_as_what_was_split():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.one(x).chunk(2, 1)
            return (self.two(a) * b[..., 2:, 2:]).mean((2, 3))

    def price(what: str, name: str) -> float:  # the first gains by channels first, the second much more by last
        last = layouts(what) == "last"
        return (2.0 if last else 1.0) if "float32[2, 3, " in what else (1.0 if last else 9.0)

    program = made(Split().eval(), Scripted(price=price))
    assert rules(program) == ["channels-last"]
    assert program.report.records[1].commits[0].node == "conv2d_1"  # a conversion behind the split, as nothing is free


def test_expanded_inputs_can_be_rehearsed():
    model = nn.Sequential(nn.Linear(12, 5)).eval()
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    x = torch.randn(1, 3, 6, 12).expand(2, 3, 6, 12)
    assert rules(made(model, target, x)) == ["linear-as-convolution"]
