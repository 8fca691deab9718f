"""Reductions taken before permutations and reshapes, against the eager program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes import HoistPooling
from tests.passes.pooling import agree, rewritten
from tests.programs import Program, aten

x4 = torch.randn(2, 4, 7, 5, dtype=torch.float64)


def test_reshapes_that_mix_what_is_pooled_stay():
    def mixed(p: Program, x):
        return p(aten.mean.dim, p(aten.reshape.default, x, [-1, 2, 14, 5]), [2])

    assert not rewritten(mixed, HoistPooling(), x4).record.commits


LAYOUTS: dict[str, tuple[Callable[..., object], list[str]]] = {
    "permuted": (
        lambda p, x: p(aten.mean.dim, p(aten.permute.default, x, [0, 3, 2, 1]), [2]),
        ["mean", "permute", "clone"],  # for the strides
    ),
    "permuted, in order": (lambda p, x: p(aten.mean.dim, p(aten.permute.default, x, [2, 3, 0, 1]), [0, 1]), ["mean"]),
    "permuted, kept": (
        lambda p, x: p(aten.amax.default, p(aten.permute.default, x, [0, 2, 3, 1]), [1, 2], True),
        ["amax", "unsqueeze", "unsqueeze"],
    ),
    "flattened": (lambda p, x: p(aten.sum.dim_IntList, p(aten.reshape.default, x, [-1, 4, 35]), [2]), ["sum"]),
    "flattened, kept": (
        lambda p, x: p(aten.logsumexp.default, p(aten.reshape.default, x, [-1, 4, 35]), [2], True),
        ["logsumexp", "unsqueeze"],
    ),
    "split": (lambda p, x: p(aten.mean.dim, p(aten.unflatten.int, x, 1, [2, 2]), [1, 2]), ["mean"]),
    "of one": (lambda p, x: p(aten.mean.dim, p(aten.unsqueeze.default, x, 1), [1, 2]), ["mean"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_reductions_move_before_layouts(name: str):
    build, left = LAYOUTS[name]
    outcome = rewritten(build, HoistPooling(), x4)
    assert outcome.operators == left
    agree(outcome.after, outcome.before)


def test_a_reshape_that_others_read_stays():
    def build(p: Program, x):
        y = p(aten.reshape.default, x, [-1, 4, 35])
        return p(aten.mean.dim, y, [2]), p(aten.relu.default, y)

    outcome = rewritten(build, HoistPooling(), x4, dynamic=False)
    assert not outcome.record.commits
