"""When training ends, and with which weights."""

from __future__ import annotations

import copy

import pytest
import torch

import rewrite
from tests.distill.models import assert_same, batches, error, pair, state


def growing(parameters):
    """Takes one good step, and then ever larger ones in the wrong direction."""
    return torch.optim.SGD(parameters, lr=0.02)


def spoiling(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 8 else -0.01)


def test_training_stops_when_nothing_gets_better_and_keeps_the_best():
    student, teacher = pair()
    best = copy.deepcopy(student)
    held = batches(2)
    options = {"optimizer": growing, "scheduler": spoiling}
    rewrite.distill(best, teacher, batches(), epochs=1, **options)
    done = rewrite.distill(student, teacher, batches(), epochs=50, validation=held, patience=3, **options)
    (stage,) = done.stages
    assert [step for step, _ in stage.validation] == [0, 8, 16, 24, 32]
    assert done.stopped == "nothing better in 3 validations"
    assert done.best == stage.validation[1]
    assert_same(state(student), state(best))
    assert done.best[1] == pytest.approx(sum(error(student, teacher, x) for x in held) / 2)


def test_a_student_that_only_gets_worse_stays_as_it_was():
    student, teacher = pair()
    before = state(student)
    done = rewrite.distill(
        student, teacher, batches(), steps=5, validation=batches(1),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4, maximize=True),
    )  # fmt: skip
    assert done.best[0] == 0
    assert_same(state(student), before)


def test_validation_after_so_many_steps_and_at_the_end():
    student, teacher = pair()
    done = rewrite.distill(student, teacher, batches(), steps=10, validation=batches(1), validate_every=4)
    assert [step for step, _ in done.stages[0].validation] == [0, 4, 8, 10]


def test_each_stage_stops_and_keeps_its_own():
    student, teacher = pair()
    done = rewrite.distill(
        student, teacher, batches(), boundaries=["first"], epochs=9, validation=batches(2), patience=1,
        optimizer=growing, scheduler=spoiling,
    )  # fmt: skip
    assert [stage.stopped for stage in done.stages] == ["nothing better in 1 validation"] * 2
    assert [stage.best[0] for stage in done.stages] == [8, 8]


def test_validation_runs_in_evaluation_mode():
    student, teacher = pair(dropout=0.5)
    student.train()
    modes = []
    student.second[1].register_forward_hook(lambda module, args, output: modes.append(module.training))
    rewrite.distill(student, teacher, batches(2), validation=batches(1))
    assert modes == [False, True, True, False]


def test_a_plateau_of_the_validation_lowers_the_rate():
    student, teacher = pair()
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    options = {
        "optimizer": lambda parameters: Watched(parameters, lr=1e-3, maximize=True),
        "scheduler": lambda one: torch.optim.lr_scheduler.ReduceLROnPlateau(one, factor=0.1, patience=0),
    }
    rewrite.distill(student, teacher, batches(2), epochs=3, validation=batches(1), **options)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    with pytest.raises(rewrite.InputError, match=r"ReduceLROnPlateau waits.*pass validation="):
        rewrite.distill(student, teacher, batches(2), **options)
