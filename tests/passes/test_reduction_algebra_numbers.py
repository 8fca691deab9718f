"""Values that are one number, and extremes with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from passes import (
    ClampByConstant,
    ReductionAlgebra,
    registry,
)
from passes.reduction_algebra import FillDegenerate
from tests.passes.pooling import Outcome, agree, rewritten
from tests.programs import Program, aten, special

Build = Callable[[Program, Any], Any]

x4 = torch.randn(2, 4, 6, 8, dtype=torch.float64)

DEGENERATE: dict[str, tuple[Build, float]] = {
    "a difference with itself": (lambda p, x: p(aten.sub.Tensor, x, x), 0.0),
    "nothing of it": (lambda p, x: p(aten.mul.Tensor, x, 0.0), 0.0),
    "a softmax of one": (lambda p, x: p(aten.softmax.int, p(aten.slice.Tensor, x, 1, 0, 1), 1), 1.0),
    "a log softmax of one": (lambda p, x: p(aten.log_softmax.int, p(aten.slice.Tensor, x, 1, 0, 1), 1), 0.0),
    "clamps that do not meet": (
        lambda p, x: p(aten.clamp.default, p(aten.clamp_max.default, x, 0.0), 0.5, 1.0), 0.5
    ),
    "a clamp to a point": (lambda p, x: p(aten.clamp.default, x, 0.25, 0.25), 0.25),
    "what is never positive": (lambda p, x: p(aten.relu.default, p(aten.neg.default, p(aten.exp.default, x))), 0.0),
    "gelu of zero": (lambda p, x: p(aten.gelu.default, p(aten.sub.Tensor, x, x)), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
def test_one_number_is_filled_in_where_inputs_are_finite(name: str):
    build, number = DEGENERATE[name]
    outcome = rewritten(build, ReductionAlgebra(finite=True), x4)
    assert set(outcome.operators) == {"new_full"}
    agree(outcome.after, outcome.before)
    assert (outcome.after == number).all()
    assert outcome.run(torch.randn(7, 4, 6, 8, dtype=torch.float64)).shape[0] == 7


@pytest.mark.parametrize("name", DEGENERATE)
def test_no_nan_becomes_a_number_unless_asked_for(name: str):
    x = x4.clone()
    x[:, 0, 0, 0], x[:, 0, 1, 1] = float("nan"), float("inf")
    outcome = rewritten(DEGENERATE[name][0], ReductionAlgebra(), x)
    assert torch.equal(outcome.after.isnan(), outcome.before.isnan())
    assert outcome.after.isnan().any()
    assert any("for every finite input" in reason for reason in outcome.reasons)
    [remedy] = set(outcome.remedies)
    assert remedy == "name 'reduction-algebra{finite=True}' in the pipeline where inputs are finite"
    assert registry().parse("reduction-algebra{finite=True}").steps == (ReductionAlgebra(finite=True),)


def test_a_number_that_the_dtype_has_not_is_not_filled_in():
    outcome = rewritten(
        lambda p, x: p(aten.add.Tensor, p(aten.clamp.default, x, 6e4, 6e4), 6e4), FillDegenerate(finite=True),
        x4.half(),
    )  # fmt: skip
    assert outcome.operators == ["new_full", "add"]
    assert outcome.after.isinf().all()


def test_what_others_read_of_a_degenerate_value_stays():
    def build(p: Program, x: Any) -> Any:
        y = p(aten.exp.default, x)
        z = p(aten.neg.default, y)
        return p(aten.relu.default, z), p(aten.sin.default, z)

    outcome = rewritten(build, ReductionAlgebra(finite=True), x4)
    assert sorted(outcome.operators) == ["exp", "neg", "new_full", "sin"]
    for a, b in zip(outcome.after, outcome.before, strict=True):
        agree(a, b)


def test_a_size_that_no_input_has_is_refused():
    outcome = rewritten(
        lambda p, x: p(aten.sub.Tensor, y := p(aten.reshape.default, x, [-1, 8]), y), ReductionAlgebra(finite=True), x4
    )
    assert outcome.reasons == ["its size is none of the model's inputs"]
    assert outcome.remedies == ["keep the batch a dimension of its own"]


def test_a_dtype_that_no_input_has_is_refused():
    def build(p: Program, x: Any, *others: Any) -> Any:
        y = p(aten.to.dtype, x, torch.float16)
        return p(aten.add.Tensor, p(aten.sub.Tensor, y, y), 1.0)

    outcome = rewritten(build, FillDegenerate(finite=True), x4)
    assert set(outcome.reasons) == {"no input and no weight that it could be made like is of float16 on 'cpu'"}
    assert set(outcome.remedies) == {"pass an input of float16 on 'cpu'"}
    outcome = rewritten(build, FillDegenerate(finite=True), x4, x4.half())
    assert not outcome.reasons


def test_dtypes_come_from_an_input_or_a_weight():
    index = torch.tensor([[0, 2], [1, 1]])
    outcome = rewritten(
        lambda p, i, w: p(aten.sub.Tensor, y := p(aten.embedding.default, w, i), y), ReductionAlgebra(finite=True),
        index, weights={"w": torch.randn(3, 4, dtype=torch.bfloat16)},
    )  # fmt: skip
    assert outcome.after.dtype == torch.bfloat16
    assert outcome.after.tolist() == torch.zeros(2, 2, 4).tolist()


# -- constants --------------------------------------------------------------------------------------------------------


EXTREMES = [aten.minimum.default, aten.maximum.default, aten.min.other, aten.max.other]


@pytest.mark.parametrize("target", EXTREMES, ids=str)
@pytest.mark.parametrize("swapped", [False, True], ids=["right", "left"])
def test_an_extreme_with_a_number_is_a_clamp(target: Any, swapped: bool):
    outcome = rewritten(
        lambda p, x, c: p(target, *((c, x) if swapped else (x, c))), ClampByConstant(), special(2, 4, 6, 8),
        weights={"c": torch.tensor(0.375)},
    )  # fmt: skip
    assert outcome.operators in (["clamp_min"], ["clamp_max"])
    torch.testing.assert_close(outcome.after, outcome.before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("number", [0.3, 70000.0, float("nan")])
def test_a_number_that_not_every_dtype_holds_stays_a_tensor(number: float):
    outcome = rewritten(
        lambda p, x, c: p(aten.maximum.default, x, c), ClampByConstant(), torch.randn(2, 4),
        weights={"c": torch.tensor(number, dtype=torch.float64).float()},
    )  # fmt: skip
    [reason] = outcome.reasons
    assert reason.endswith("is another number in other dtypes, or none")
    assert outcome.remedies[0].startswith("call clamp(min=")


CONSTANTS: dict[str, Tensor] = {
    "several": torch.randn(8),
    "trained": torch.tensor(0.3, requires_grad=True),
    "wider": torch.tensor([0.3], dtype=torch.float64),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_other_constants_stay(name: str):
    outcome = rewritten(
        lambda p, x, c: p(aten.minimum.default, x, p(aten.clone.default, c)), ClampByConstant(), torch.randn(2, 8),
        weights={"c": CONSTANTS[name]},
    )  # fmt: skip
    assert not outcome.record.commits


def test_two_values_of_the_model_are_no_clamp():
    outcome: Outcome = rewritten(
        lambda p, x, y: p(aten.minimum.default, x, y), ClampByConstant(), torch.randn(2, 8), torch.randn(1, 1),
        dynamic=False,
    )  # fmt: skip
    assert not outcome.record.commits
