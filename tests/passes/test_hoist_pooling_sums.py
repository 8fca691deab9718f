"""Means and sums taken before sums and products, against the eager program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes import HoistPooling
from tests.passes.blocks import Block, conv
from tests.passes.pooling import agree, rewritten
from tests.passes.rewriting import rewrite, scatter
from tests.programs import Program, aten

x4 = torch.randn(2, 4, 7, 5, dtype=torch.float64)


def gap(self: Block, x: Tensor) -> Tensor:
    return self.layer(x).mean((2, 3))


def test_sums_without_a_layer_stay():
    outcome = rewritten(
        lambda p, x: p(aten.mean.dim, p(aten.add.Tensor, x, p(aten.relu.default, x)), [2, 3]), HoistPooling(), x4
    )
    assert outcome.operators == ["relu", "add", "mean"]
    assert not outcome.reasons


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_a_shift_of_no_layer_stays_for_what_is_left_of_it_may_be_small(kind: str):
    operator = {"mean": aten.mean.dim, "sum": aten.sum.dim_IntList}[kind]
    outcome = rewritten(lambda p, x: p(operator, p(aten.sub.Tensor, x, 1e4), [2, 3]), HoistPooling(), 1e4 + x4.float())
    assert outcome.operators == ["sub", kind]
    assert not outcome.reasons


def test_what_the_model_subtracts_first_is_subtracted_before_the_mean():
    def build(p: Program, x, w):
        return p(aten.mean.dim, p(aten.add.Tensor, p(aten.sub.Tensor, x, 1e4), p(aten.conv2d.default, x, w)), [2, 3])

    weight = torch.randn(4, 4, 1, 1, dtype=torch.float64)
    outcome = rewritten(build, HoistPooling(), x4, weights={"w": weight})
    assert outcome.operators == ["sub", "mean", "mean", "conv2d", "squeeze", "add"]
    agree(outcome.after, outcome.before, outcome.before.abs())


def test_layers_are_found_below_other_sums():
    def build(p: Program, x, w):
        inner = p(aten.add.Tensor, p(aten.add.Tensor, p(aten.conv2d.default, x, w), p(aten.relu.default, x)), 1.0)
        return p(aten.mean.dim, p(aten.sub.Tensor, inner, p(aten.tanh.default, x)), [2, 3])

    weight = torch.randn(4, 4, 1, 1, dtype=torch.float64)
    outcome = rewritten(build, HoistPooling(), x4, weights={"w": weight})
    assert "conv2d" in outcome.operators
    assert outcome.operators.count("mean") == 3
    agree(outcome.after, outcome.before, outcome.before.abs())


@pytest.mark.parametrize("scaled", [True, False])
def test_sums_in_float16_that_might_overflow_are_refused(scaled: bool):
    def build(p: Program, x, w):
        y = p(aten.conv2d.default, x, w)
        return p(aten.sum.dim_IntList, p(aten.mul.Tensor if scaled else aten.add.Tensor, y, 1 / 256), [2, 3])

    weight = torch.randn(4, 4, 1, 1, dtype=torch.float16)
    outcome = rewritten(build, HoistPooling(), x4.half(), weights={"w": weight})
    assert outcome.operators == ["conv2d", "mul" if scaled else "add", "sum"]
    assert outcome.reasons == ["the sum of what is not scaled or shifted yet may overflow in float16"]
    assert outcome.remedies == ["let sum be a mean, and multiply that by the number of elements"]


def test_a_norm_in_sixteen_bits_subtracts_before_it_rounds():
    model = scatter(Block(gap, layer=nn.BatchNorm2d(4))).bfloat16()
    result = rewrite(model, HoistPooling(), torch.randn(2, 4, 7, 5, dtype=torch.bfloat16))
    assert result.reasons == ["a mean in torch.bfloat16 would be rounded before the norm subtracts from it"]
    behind = scatter(Block(lambda self, x: (x + self.norm(self.layer(x))).mean((2, 3)),
                           layer=conv(4, 4, 1), norm=nn.BatchNorm2d(4))).bfloat16()  # fmt: skip
    assert not rewrite(behind, HoistPooling(), torch.randn(2, 4, 7, 5, dtype=torch.bfloat16)).record.commits


def test_a_layer_read_beside_the_sum_does_not_split_it():
    def build(p: Program, x, w):
        y = p(aten.conv2d.default, x, w)
        return p(aten.mean.dim, p(aten.add.Tensor, x, y), [2, 3]), p(aten.relu.default, y)

    weight = torch.randn(4, 4, 1, 1, dtype=torch.float64)
    assert not rewritten(build, HoistPooling(), x4, weights={"w": weight}).record.commits


def test_factors_that_vary_where_is_pooled_stay():
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.mul.Tensor, x, w), [2, 3]),
        HoistPooling(), x4, weights={"w": torch.randn(7, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert outcome.operators == ["mul", "mean"]
    divisor = rewritten(lambda p, x: p(aten.mean.dim, p(aten.reciprocal.default, x), [2, 3]), HoistPooling(), x4)
    assert not divisor.record.commits
    swapped = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.div.Tensor, w, x), [2, 3]),
        HoistPooling(), x4, weights={"w": torch.randn(4, 1, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert not swapped.record.commits


def test_factors_of_a_wider_dtype_stay():
    outcome = rewritten(
        lambda p, x, w: p(aten.mean.dim, p(aten.mul.Tensor, x, w), [2, 3]),
        HoistPooling(), x4.float(), weights={"w": torch.randn(4, 1, 1, dtype=torch.float64)},
    )  # fmt: skip
    assert not outcome.record.commits


def test_a_scaled_value_that_is_read_elsewhere_is_not_pooled_first():
    def build(p: Program, x):
        y = p(aten.mul.Tensor, x, 2.0)
        return p(aten.mean.dim, y, [2, 3]), p(aten.relu.default, y)

    assert not rewritten(build, HoistPooling(), x4).record.commits
