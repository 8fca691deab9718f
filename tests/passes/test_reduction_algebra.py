"""Reductions of reductions and of one element."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

from passes import (
    ReductionAlgebra,
)
from passes.reduction_algebra import RemoveUnitReduction
from tests.passes.pooling import agree, rewritten
from tests.programs import Program, aten, special

Build = Callable[[Program, Any], Any]

x4 = torch.randn(2, 4, 6, 8, dtype=torch.float64)


def mean(p: Program, x: Any, dims: list[int], keepdim: bool = False) -> Any:
    return p(aten.mean.dim, x, dims, keepdim)


MERGED: dict[str, tuple[Build, list[str]]] = {
    "mean of mean": (lambda p, x: mean(p, mean(p, x, [3]), [2]), ["mean"]),
    "kept, then not": (lambda p, x: mean(p, mean(p, x, [3], True), [2]), ["mean", "squeeze"]),
    "not kept, then kept": (lambda p, x: mean(p, mean(p, x, [1]), [1], True), ["mean", "squeeze"]),
    "both kept": (lambda p, x: mean(p, mean(p, x, [-2], True), [-1], True), ["mean"]),
    "the same again": (lambda p, x: mean(p, mean(p, x, [2, 3], True), [2, 3]), ["mean"]),
    "everything": (lambda p, x: p(aten.mean.default, mean(p, x, [1, 3])), ["mean"]),
    "of the batch too": (lambda p, x: mean(p, mean(p, x, [2, 1]), [0]), ["mean"]),
    "sum of sum": (
        lambda p, x: p(aten.sum.dim_IntList, p(aten.sum.dim_IntList, x, [1]), [2], True), ["sum", "squeeze"]
    ),
    "max of max": (lambda p, x: p(aten.amax.default, p(operator.getitem, p(aten.max.dim, x, 1), 0), [1]), ["amax"]),
    "min of min": (lambda p, x: p(aten.min.default, p(aten.amin.default, x, [1])), ["amin"]),
    "logsumexp": (lambda p, x: p(aten.logsumexp.default, p(aten.logsumexp.default, x, [1]), [1]), ["logsumexp"]),
    "global pool twice": (
        lambda p, x: p(aten.adaptive_avg_pool2d.default, p(aten.adaptive_avg_pool2d.default, x, [1, 1]), [1, 1]),
        ["mean"],
    ),
    "windows that tile": (
        lambda p, x: p(aten.adaptive_avg_pool2d.default, p(aten.avg_pool2d.default, x, [3, 2]), [1, 1]), ["mean"]
    ),
    "one line of windows": (lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [1, 4]), [3]), ["mean"]),
    "windows with their own divisor": (
        lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [2, 2], [2, 2], [0, 0], True, True, 4), [2, 3]), ["mean"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_two_reductions_are_one(name: str):
    build, left = MERGED[name]
    outcome = rewritten(build, ReductionAlgebra(), x4)
    assert outcome.operators == left
    agree(outcome.after, outcome.before)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_merged_means_hold_for_every_batch(batch: int):
    outcome = rewritten(lambda p, x: mean(p, mean(p, x, [3]), [1, 2]), ReductionAlgebra(), x4)
    x = torch.randn(batch, 4, 6, 8, dtype=torch.float64)
    agree(outcome.run(x), x.mean((1, 2, 3)))


SEPARATE: dict[str, tuple[Build, str]] = {
    "of another kind": (lambda p, x: p(aten.amax.default, mean(p, x, [3]), [2]), ""),
    "products": (lambda p, x: p(aten.prod.dim_int, p(aten.prod.dim_int, x, 3), 2), ""),
    "windows that overlap": (
        lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [2, 2], [1, 1]), [2, 3]),
        "the windows of the pool overlap, leave gaps or hang over the border",
    ),
    "padded windows": (
        lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [2, 2], [2, 2], [1, 1]), [2, 3]),
        "the windows of the pool overlap, leave gaps or hang over the border",
    ),
    "windows with a rest": (
        lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [4, 2]), [2, 3]),
        "the windows of the pool do not tile its input",
    ),
    "windows with another divisor": (
        lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [2, 2], [2, 2], [0, 0], False, True, 5), [2, 3]),
        "the divisor of the pool is not the size of its window",
    ),
    "windows of two dimensions, a mean of one": (lambda p, x: mean(p, p(aten.avg_pool2d.default, x, [2, 2]), [3]), ""),
    "a sum of windows": (lambda p, x: p(aten.sum.dim_IntList, p(aten.avg_pool2d.default, x, [2, 2]), [2, 3]), ""),
    "a deviation": (lambda p, x: p(aten.std.correction, mean(p, x, [3]), [2]), ""),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_what_is_not_one_reduction_stays_two(name: str):
    build, reason = SEPARATE[name]
    outcome = rewritten(build, ReductionAlgebra(), x4)
    assert not outcome.record.commits
    assert outcome.reasons == ([reason] if reason else [])


def test_an_inner_reduction_that_others_read_stays():
    for inner in (lambda p, x: mean(p, x, [3]), lambda p, x: p(aten.avg_pool2d.default, x, [2, 2])):

        def build(p: Program, x: Any, inner: Build = inner) -> Any:
            y = inner(p, x)
            return mean(p, y, [2, 3][: y.meta["val"].dim() - 2]), p(aten.exp.default, y)

        [reason] = rewritten(build, ReductionAlgebra(), x4).reasons
        assert reason.endswith("is also read elsewhere")


def test_a_maximum_whose_place_is_read_stays():
    def build(p: Program, x: Any) -> Any:
        both = p(aten.max.dim, x, 1)
        return p(aten.amax.default, p(operator.getitem, both, 0), [1]), p(operator.getitem, both, 1)

    assert not rewritten(build, ReductionAlgebra(), x4).record.commits
    assert not rewritten(build, ReductionAlgebra(), x4[:, :1]).record.commits


def test_whole_numbers_are_summed_exactly():
    x = torch.randint(-(2**40), 2**40, (2, 3, 4))
    outcome = rewritten(
        lambda p, x: p(aten.sum.dim_IntList, p(aten.sum.dim_IntList, x, [2]), [1]), ReductionAlgebra(), x
    )
    assert outcome.operators == ["sum"]
    assert torch.equal(outcome.after, outcome.before)


# -- one element ------------------------------------------------------------------------------------------------------

UNIT: dict[str, Build] = {
    "mean": lambda p, x: mean(p, x, [1], True),
    "sum": lambda p, x: p(aten.sum.dim_IntList, x, [1, 3], True),
    "product": lambda p, x: p(aten.prod.dim_int, x, 1, True),
    "largest": lambda p, x: p(operator.getitem, p(aten.max.dim, x, 1, True), 0),
    "least": lambda p, x: p(aten.amin.default, x, [3], True),
    "logsumexp": lambda p, x: p(aten.logsumexp.default, x, [1], True),
    "window": lambda p, x: p(aten.avg_pool1d.default, p(aten.squeeze.dims, x, [1]), [1]),
    "not kept": lambda p, x: mean(p, x, [1]),
    "neither kept": lambda p, x: p(aten.amax.default, x, [1, -1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", UNIT)
def test_a_reduction_of_one_element_goes_and_every_value_stays(name: str, dtype: torch.dtype):
    x = special(4, 1, 9, 1, dtype=dtype)
    outcome = rewritten(lambda p, x: p(aten.exp.default, UNIT[name](p, x)), RemoveUnitReduction(), x)
    assert set(outcome.operators) <= {"exp", "squeeze"}
    torch.testing.assert_close(outcome.after, outcome.before, rtol=0, atol=0, equal_nan=True)


def test_a_number_is_its_own_mean():
    outcome = rewritten(
        lambda p, x: p(aten.exp.default, p(aten.mean.default, x)), RemoveUnitReduction(), torch.tensor(2.0),
        dynamic=False,
    )  # fmt: skip
    assert outcome.operators == ["exp"]


@pytest.mark.parametrize("target", [aten.std.correction, aten.var.correction], ids=str)
@pytest.mark.parametrize("correction", [0, 1])
def test_deviations_of_one_element_are_left_alone(target: Any, correction: int):
    outcome = rewritten(lambda p, x: p(target, x, [1], correction=correction), ReductionAlgebra(), x4[:, :1])
    assert not outcome.record.commits
    assert not outcome.reasons


def test_a_batch_that_may_be_one_is_not_one():
    outcome = rewritten(lambda p, x: mean(p, x, [0]), RemoveUnitReduction(), torch.randn(1, 3))
    assert not outcome.record.commits


def test_a_result_of_its_own_stays_one():
    outcome = rewritten(lambda p, x: mean(p, x, [1], True), RemoveUnitReduction(), torch.randn(2, 1, 3))
    assert outcome.reasons == ["the model returns a tensor of its own, which would become its input or weight itself"]


@pytest.mark.parametrize("keepdim", [False, True], ids=["dropped", "kept"])
def test_other_strides_are_refused(keepdim: bool):
    def build(p: Program, x: Any) -> Any:
        return p(aten.exp.default, mean(p, p(aten.slice.Tensor, x, 2, 0, 9, 2), [1], keepdim))

    outcome = rewritten(build, RemoveUnitReduction(), torch.randn(2, 1, 9))
    [reason] = outcome.reasons
    assert "strides" in reason
