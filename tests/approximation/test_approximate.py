"""``approximate`` from a model and data to a ledger: budgets hold, predictions are right, the model stays as it is."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
from passes.inception import Inception
from rewrite import approximate, optimize
from rewrite.approximation import ApproximatedModule
from rewrite.errors import CaptureError, InputError, PipelineError
from rewrite.pipeline import rules_of
from tests.approximation.networks import Net, batches, distance, net, smooth

KERNELS = (5, 7, 9)


@pytest.fixture(scope="module")
def model() -> Net:
    return net(*KERNELS)


@pytest.fixture(scope="module")
def student(model: Net) -> ApproximatedModule:
    return approximate(model, batches(), "inception", max_error=0.02)


def test_the_budget_holds_on_other_data(model: Net, student: ApproximatedModule) -> None:
    ledger = student.ledger
    assert ledger.taken
    assert 0 < ledger.drift <= 0.02
    fresh = smooth(8, 100)
    with torch.no_grad():
        assert 0 < distance(student(fresh), model(fresh)) <= 1.5 * 0.02


def test_measured_errors_are_those_of_the_parts(model: Net, student: ApproximatedModule) -> None:
    """By hand: the held-out batch through the model with the kernels of one site replaced."""
    held = batches()[3]
    for entry in student.ledger.taken:
        alone = copy.deepcopy(student)
        others = [other.site for other in student.ledger.taken if other.site != entry.site]
        if others:
            alone.undo(*others)
        with torch.no_grad():
            wanted, seen = alone.source.observe([entry.site], held)
            found, mine = alone.observe([entry.site], held)
        assert entry.measured == pytest.approx(distance(mine[entry.site], seen[entry.site]), rel=1e-3)
        assert entry.measured_drift == pytest.approx(distance(found, wanted), rel=1e-2)
        assert entry.predicted == pytest.approx(entry.measured, rel=0.3)
        assert entry.predicted_drift is not None
        assert 1 / 3 < entry.predicted_drift / entry.measured_drift < 3


def test_errors_add_up_along_the_program(student: ApproximatedModule) -> None:
    drifts = [entry.drift for entry in student.ledger.taken]
    assert drifts[0] == pytest.approx(student.ledger.taken[0].measured_drift, rel=1e-6)
    assert drifts[-1] == pytest.approx(student.ledger.drift, rel=1e-6)


def test_the_model_is_not_changed() -> None:
    model = net(7)
    before = copy.deepcopy(model.state_dict())
    data = batches(2)
    kept = [x.clone() for x in data]
    student = approximate(model, data, "inception", max_error=0.1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, data, strict=True))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_larger_budget_saves_more(model: Net) -> None:
    saved = []
    for budget in (0.004, 0.02, 0.2):
        ledger = approximate(model, batches(), "inception", max_error=budget).ledger
        assert ledger.drift <= budget
        saved.append(ledger.before.seconds - ledger.after.seconds)
    assert 0 <= saved[0] <= saved[1] <= saved[2]
    assert saved[2] > saved[0]


def test_so_much_is_saved_as_was_asked_for(model: Net) -> None:
    ledgers = [approximate(model, batches(), "inception", saving=part).ledger for part in (0.05, 0.15)]
    for part, ledger in zip((0.05, 0.15), ledgers, strict=True):
        assert ledger.after.seconds <= (1 - part) * ledger.before.seconds * (1 + 1e-9)
    assert ledgers[0].drift < ledgers[1].drift
    most = approximate(model, batches(), "inception", saving=0.99).ledger
    assert most.after.seconds < ledgers[1].after.seconds


def test_no_site_is_further_off_than_allowed(model: Net) -> None:
    ledger = approximate(model, batches(), "inception", max_site_error=0.4).ledger
    assert ledger.taken
    assert all(entry.measured is not None and entry.measured <= 0.4 for entry in ledger.taken)
    free = approximate(model, batches(), "inception", max_error=math.inf).ledger
    assert max(entry.measured or 0.0 for entry in free.taken) > 0.4


def test_named_modules_are_left_alone(model: Net) -> None:
    ledger = approximate(model, batches(), "inception", max_error=0.5, exclude="blocks.1").ledger
    assert {entry.module for entry in ledger} == {"blocks.0.mix", "blocks.2.mix"}


def test_batches_of_any_kind(model: Net) -> None:
    data = batches()
    plain = approximate(model, data, "inception", max_error=0.05).ledger
    for given, inputs in (
        ([(x,) for x in data], None), ([{"x": x} for x in data], None), (iter(data), None),
        ([(x, torch.zeros(4)) for x in data], lambda batch: batch[0]),
        (torch.utils.data.DataLoader(torch.cat(data), batch_size=4), None),
    ):  # fmt: skip
        ledger = approximate(model, given, "inception", max_error=0.05, inputs=inputs).ledger
        assert [entry.option for entry in ledger] == [entry.option for entry in plain]
        assert ledger.drift == pytest.approx(plain.drift, rel=1e-3)


def test_the_ledger_prints_and_is_data(student: ApproximatedModule) -> None:
    text = str(student.ledger)
    assert "sites approximated by inception" in text
    assert "blocks.1.mix" in text
    assert "output error" in text
    data = student.ledger.to_dict()
    assert [entry["site"] for entry in data["entries"]] == [entry.site for entry in student.ledger]
    assert data["before"]["flops"] > data["after"]["flops"]


def test_what_comes_out_can_be_optimized(student: ApproximatedModule) -> None:
    x = smooth(3, 50)
    fast = optimize(student, x, lower="eager", tune="off")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), student(x))
    assert fast.report.model_verdict.accepted


def test_nothing_of_it_runs_unless_it_is_named(model: Net) -> None:
    steps = (*passes.default_pipeline(), *passes.live_pipeline())
    names = {rule.name for step in steps for rule in rules_of(step)}
    assert names.isdisjoint(passes.approximations().steps)
    fast = optimize(model, smooth(2, 0), lower="eager", tune="off")
    made = {commit.rule for record in fast.report.records for commit in record.commits}
    assert made.isdisjoint(passes.approximations().steps)


@pytest.mark.parametrize("pipeline", ["inception", "default, inception{square=5}", [Inception()]])
def test_pipelines_refuse_it(model: Net, pipeline: object) -> None:
    with pytest.raises(PipelineError, match=r"fitted to data; use rewrite\.approximate"):
        optimize(model, smooth(2, 0), pipeline=pipeline)


@pytest.mark.parametrize(("settings", "text"), [
    ({}, "there is no budget"), ({"max_error": 0.0}, "max_error=0.0 is no budget"), ({"max_error": -1}, "above 0"),
    ({"max_error": math.nan}, "max_error=nan"), ({"saving": 1.0}, "not below 1"), ({"saving": "much"}, "saving='much'"),
    ({"saving": 0.5, "max_error": 0.1}, "leave out one"), ({"max_error": 0.1, "exclude": "blok"}, "exclude='blok'"),
])  # fmt: skip
def test_budgets_that_are_none(model: Net, settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        approximate(model, batches(), "inception", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rules", "text"), [
    ("inceptoin", "did you mean 'inception'"), ("inception{squar=3}", "did you mean 'square'"),
    ("inception{square=2}", "give an odd number"), ([], "no approximation is named"),
    ([passes.TrimKernel()], "is no approximation"), ("", "no approximation is named"),
])  # fmt: skip
def test_rules_that_are_none(model: Net, rules: object, text: str) -> None:
    with pytest.raises(PipelineError, match=text):
        approximate(model, batches(), rules, max_error=0.1)  # type: ignore[arg-type]


def test_models_that_cannot_be_approximated(model: Net) -> None:
    with pytest.raises(InputError, match="training mode"):
        approximate(net(5).train(), batches(), "inception", max_error=0.1)
    with pytest.raises(InputError, match="needs the model itself"):
        approximate(optimize(model, lower="eager"), batches(), "inception", max_error=0.1)

    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(CaptureError):
        approximate(Decides().eval(), batches(), "inception", max_error=0.1)


def test_without_sites_nothing_happens() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    x = torch.randn(6, 3)
    student = approximate(model, [x, x], "inception", max_error=0.1)
    assert len(student.ledger) == 0
    assert student.ledger.drift == 0
    with torch.no_grad():
        torch.testing.assert_close(student(x), model(x))


class Odd(nn.Module):
    """With an argument that is no tensor, and several kinds of outputs."""

    def __init__(self, kind: str):
        super().__init__()
        self.net, self.kind = net(5, 7), kind

    def forward(self, x: Tensor, factor: int = 1) -> Any:
        y = self.net(x) * factor
        if self.kind == "complex":
            return torch.fft.rfft(y)
        if self.kind == "label":
            return y.argmax(1)
        if self.kind == "infinite":
            return torch.cat([y, torch.full_like(y[:, :1], -math.inf)], 1)
        if self.kind == "noise":
            return y + torch.rand_like(y)
        return y


def test_arguments_that_are_no_tensors_are_part_of_the_program() -> None:
    data = [(x, 2) for x in batches(3)]
    model = Odd("plain").eval()
    student = approximate(model, data, "inception", max_error=0.5)
    with torch.no_grad():
        assert distance(student(data[0][0], 2), model(data[0][0], 2)) < 0.5
    with pytest.raises(InputError, match="'factor' of 3, not 2"):
        student(data[0][0], 3)
    with pytest.raises(InputError, match=r"batch 3 has 'factor' of 1, not 2"):
        approximate(model, [*data[:2], (data[2][0], 1)], "inception", max_error=0.5)


def test_outputs_of_every_kind() -> None:
    for kind in ("complex", "infinite"):
        student = approximate(Odd(kind).eval(), batches(3), "inception", max_error=0.3)
        assert student.ledger.taken
        assert 0 < student.ledger.drift <= 0.3
    with pytest.raises(InputError, match="no output of the model is a tensor of real or complex numbers"):
        approximate(Odd("label").eval(), batches(3), "inception", max_error=0.3)
    with pytest.raises(InputError, match="draws random numbers"):
        approximate(Odd("noise").eval(), batches(3), "inception", max_error=0.3)


class Tied(nn.Module):
    """A weight of two names, one that is frozen, and a table that is computed from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.third.weight.requires_grad_(False)
        self.register_buffer("places", torch.arange(6.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))) + torch.sin(self.places * 2)


def test_parameters_are_those_of_the_model() -> None:
    """Under all their names, as trainable as they were, and nothing else."""
    x = torch.randn(8, 6)
    student = approximate(Tied().eval(), [x, x], "inception", max_error=0.1)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {"program.first.bias", "program.second.bias", "program.third.bias"} < trained
    assert len(trained & {"program.first.weight", "program.second.weight"}) == 1
    assert "program.third.weight" in dict(student.named_parameters()).keys() - trained
    assert not any("folded" in name for name, _ in student.named_parameters())
    wrapped = approximate(nn.DataParallel(Tied()).eval(), [x, x], "inception", max_error=0.1)
    assert {name for name, _ in wrapped.named_parameters()} == {name for name, _ in student.named_parameters()}


def test_contexts_that_change_what_is_computed(model: Net) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="autocast is on"):
        approximate(model, batches(2), "inception", max_error=0.1)
    with torch.inference_mode():
        student = approximate(model, batches(2), "inception", max_error=0.1)
    student(smooth(2, 0)).sum().backward()


@pytest.mark.parametrize("rules", [Inception, None, 3])
def test_rules_of_no_kind(model: Net, rules: Any) -> None:
    with pytest.raises(PipelineError, match="is no approximation"):
        approximate(model, batches(2), rules, max_error=0.1)


def test_reasons_are_told(model: Net) -> None:
    tight = approximate(model, batches(), "inception", max_error=1e-9).ledger
    assert {entry.reason for entry in tight} == {"it is over the budget alone"}
    little = approximate(model, batches(), "inception", saving=0.02).ledger
    assert "it is not needed for the saving" in {entry.reason for entry in little}
