"""Reductions of reductions and of one element; means of group norms; values that are one number."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import (
    ClampByConstant,
    CommutePooling,
    HoistPooling,
    MeanOfUniformGroupNorm,
    ReductionAlgebra,
    registry,
)
from passes.reduction_algebra import FillDegenerate, RemoveUnitReduction
from rewrite import transform
from rewrite.pipeline import Pipeline
from tests.passes.blocks import Block
from tests.passes.pooling import Outcome, agree, rewritten
from tests.passes.rewriting import assert_exact, rewrite
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


TIES: dict[str, Callable[[Tensor], Tensor]] = {
    "one of each": lambda x: x.max(2)[0].max(1)[0],
    "shared in two steps": lambda x: x.amin(2).amin(1),
    "of a reshape": lambda x: x.flatten(1).min(1)[0],
    "of an activation": lambda x: x.sigmoid().max(1)[0],
    "one of each, then shared": lambda x: x.max(2)[0].amax(1),
}


@pytest.mark.parametrize("name", TIES)
def test_elements_that_tie_share_the_gradient_as_before(name: str):
    x = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 1]).reshape(1, 2, 4).repeat(2, 1, 1)
    model = Block(lambda self, x: TIES[name](x) * self.layer.weight[0, 0], layer=nn.Linear(1, 1, bias=False))
    steps = HoistPooling(), CommutePooling(), ReductionAlgebra()
    found = transform(model, x, Pipeline(steps))
    gradients = []
    for function in (model, found):
        given = x.clone().requires_grad_()
        function(given).sum().backward()
        gradients.append(given.grad)
    assert torch.equal(*gradients)
    assert any("where elements tie" in refusal.reason for refusal in found.report.refusals())
    assert sum(len(rewrite(model.eval(), step, x).record.commits) for step in steps) == 1


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


# -- group norms ------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    """The mean of a group norm over all but the batch."""

    def __init__(self, affine: bool = True, keepdim: bool = False, batch: bool = False, groups: int = 2) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, 6, affine=affine)
        self.keepdim, self.batch = keepdim, batch

    def forward(self, x: Tensor) -> Tensor:
        dims = tuple(range(0 if self.batch else 1, x.dim()))
        return self.norm(x).mean(dims, keepdim=self.keepdim)

    def scattered(self) -> Normed:
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        return self


image = torch.randn(2, 6, 5, 4)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("batch", [False, True], ids=["rows", "batch"])
@pytest.mark.parametrize("keepdim", [False, True], ids=["dropped", "kept"])
def test_the_mean_of_a_group_norm_needs_no_normed_image(groups: int, batch: bool, keepdim: bool):
    model = Normed(True, keepdim, batch, groups).scattered().eval()
    x = image + 3
    result = rewrite(model, ReductionAlgebra(), x)
    assert "group_norm" not in result.operators
    assert_exact(result, model, x)


def test_the_mean_of_a_group_norm_of_vectors():
    model, x = Normed().scattered().eval(), torch.randn(3, 6)
    result = rewrite(model, ReductionAlgebra(), x)
    assert "group_norm" not in result.operators
    assert_exact(result, model, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parameters", ["narrow", "wide"])
def test_the_mean_of_a_group_norm_in_sixteen_bits_is_as_exact_as_the_norm(dtype: torch.dtype, parameters: str):
    # a variance of 600 squared is infinite in float16, and means of 5000 hold no digit behind the point
    model = Normed().scattered().eval().to(dtype if parameters == "narrow" else torch.float32)
    x = (5000 + 600 * torch.randn(4, 6, 8, 8)).to(dtype)
    result = rewrite(model, ReductionAlgebra(), x)
    assert "group_norm" not in result.operators
    with torch.no_grad():
        expected, found = copy.deepcopy(model).double()(x.double()), result.graph.to_module()(x)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= 2 * torch.finfo(dtype).eps


def test_a_group_norm_that_is_not_finite_has_no_finite_mean():
    model = Normed().scattered().eval()
    result = rewrite(model, ReductionAlgebra(), image)
    x = image.clone()
    x[0, 0, 0, 0] = float("nan")
    assert result.graph.to_module()(x).isnan().tolist() == [True, False]


def test_a_normed_image_that_others_read_stays():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y.mean((1, 2, 3)) + y[:, 0, 0, 0]

    result = rewrite(Block(forward, norm=Normed().scattered().norm).eval(), ReductionAlgebra(), image)
    assert len(result.reasons) == 1
    assert "is also read elsewhere" in result.reasons[0]


def test_means_over_less_than_the_norm_stay():
    for dims in ((2, 3), (1, 2)):
        model = Block(lambda self, x, d=dims: self.norm(x).mean(d), norm=Normed().scattered().norm).eval()
        assert not rewrite(model, ReductionAlgebra(), image).record.commits


@pytest.mark.parametrize("keepdim", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_a_uniform_scale_leaves_the_mean_of_the_shift(affine: bool, keepdim: bool):
    model = Normed(affine, keepdim).eval()
    if affine:
        nn.init.normal_(model.norm.bias)
        with torch.no_grad():
            model.norm.weight[:3] = -0.5
    result = rewrite(model, MeanOfUniformGroupNorm(finite=True), image)
    assert set(result.operators) <= {"sym_size", "new_full", "add"}
    assert_exact(result, model, image)
    assert torch.allclose(result.graph.to_module()(image[:1]), model(image[:1]), atol=1e-6)


def test_the_mean_of_an_empty_batch_is_no_number():
    model = Normed(batch=True).eval()
    reason = "it is NaN for a batch of none, of which it takes the mean"
    assert rewrite(model, MeanOfUniformGroupNorm(finite=True), image).reasons == [reason]
    outcome = rewritten(lambda p, x: p(aten.mean.default, p(aten.sub.Tensor, x, x)), ReductionAlgebra(finite=True), x4)
    assert reason in outcome.reasons
    assert outcome.run(x4[:0]).isnan()
    fixed = rewritten(
        lambda p, x: p(aten.mean.default, p(aten.sub.Tensor, x, x)), ReductionAlgebra(finite=True), x4, dynamic=False
    )
    assert fixed.operators == ["new_full"]


def test_a_uniform_scale_is_dropped_only_where_that_is_asked_for():
    result = rewrite(Normed().eval(), MeanOfUniformGroupNorm(), image)
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.reason == "it does not depend on what it is computed from where that is finite"
    assert "mean-of-uniform-group-norm{finite=True}" in refused.remedy


def test_the_mean_of_a_group_norm_without_a_scale_is_a_hint():
    result = rewrite(Normed(affine=False).eval(), ReductionAlgebra(), image)
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.rule == "mean-of-group-norm"
    assert refused.remedy == "name 'mean-of-uniform-group-norm{finite=True}' in the pipeline where inputs are finite"
    assert rewrite(Normed(affine=False).eval(), MeanOfUniformGroupNorm(finite=True), image).record.commits


def test_a_scale_that_varies_within_a_group_is_refused():
    model = Normed().eval()
    with torch.no_grad():
        model.norm.weight[1] = 2
    result = rewrite(model, MeanOfUniformGroupNorm(finite=True), image)
    assert result.reasons == ["the norm's weight varies within a group"]


def test_a_scale_from_the_input_is_refused():
    model = Block(lambda self, x: F.group_norm(x, 2, x[0, :, 0, 0]).mean((1, 2, 3))).eval()
    result = rewrite(model, MeanOfUniformGroupNorm(finite=True), image)
    assert result.reasons == ["the norm's weight depends on the input"]


# -- one number -------------------------------------------------------------------------------------------------------

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
