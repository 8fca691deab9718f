"""Distillation on a device: mixed precision, and random numbers of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rewrite
from rewrite.distillation import Distilled
from tests.distill.models import assert_same, batches, pair, state


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16, None])
def test_a_student_recovers_from_batches_of_the_host(autocast: torch.dtype | None) -> None:
    student, teacher = (module.cuda() for module in pair())
    losses = rewrite.distill(student, teacher, batches(), epochs=20, autocast=autocast, clip=1.0).stages[0].losses
    assert losses[-1] < losses[0] / 3
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("autocast", [torch.float16, None])
def test_a_training_goes_on_to_the_same_bits(tmp_path: Path, autocast: torch.dtype | None) -> None:
    def run(name: str, fails: bool = False) -> Distilled:
        student, teacher = (module.cuda() for module in pair(dropout=0.3))
        student.train()
        data = batches()
        if fails:
            data[6] = data[6] * float("nan")
        return rewrite.distill(student, teacher, data, epochs=2, checkpoint=tmp_path / name, every=4, autocast=autocast)

    whole = run("whole")
    with pytest.raises(rewrite.InputError, match="step 7"):
        run("part", fails=True)
    torch.cuda.manual_seed(99)
    done = run("part")
    assert done.resumed == 4
    assert done.stages == whole.stages
    assert_same(state(done.student), state(whole.student))


def test_float16_gradients_that_overflow_are_left_out() -> None:
    """The scale is lowered until they do not, and no step is made meanwhile."""
    student, teacher = (module.cuda() for module in pair())
    before = state(student)
    rewrite.distill(
        student, teacher, batches(1), steps=1, autocast=torch.float16, loss=lambda a, b: 1e4 * (a - b).sum()
    )
    assert_same(state(student), before)
