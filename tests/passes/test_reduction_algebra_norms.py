"""Means of group norms that need no normed image."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import (
    MeanOfUniformGroupNorm,
    ReductionAlgebra,
)
from tests.passes.blocks import Block
from tests.passes.pooling import rewritten
from tests.passes.rewriting import assert_exact, rewrite
from tests.programs import aten


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
x4 = torch.randn(2, 4, 6, 8, dtype=torch.float64)


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
