"""Writes that autograd does not see are refused where gradients are asked for, and are no matter elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch

from rewrite import CaptureError, optimize, transform
from rewrite.trace.hidden import HiddenWriteError, without_hidden_writes
from tests.writing import HIDDEN, SEEN, ClampedActivation, ClampedData

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", HIDDEN)
def test_transform_refuses_them(make):
    with pytest.raises(
        CaptureError, match=r"writes with 'aten\.\w+\.default' at writing.py:\d+ .* compute a new value"
    ):
        transform(make().double().train(), X)


@pytest.mark.parametrize("make", SEEN)
def test_transform_takes_the_others(make):
    model = make().double().train()
    twin = copy.deepcopy(model)
    step = transform(model, X)
    for _ in range(2):
        for net, call in ((model, step), (twin, twin)):
            net.zero_grad()
            call(X).square().sum().backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_optimize_takes_them():
    model = ClampedActivation().double().eval()
    torch.testing.assert_close(optimize(model, X, lower="eager")(X), model(X))


def test_memory_that_is_used_again_is_no_alias():
    with without_hidden_writes():
        for _ in range(50):
            torch.randn(64, requires_grad=True).mul(2)
            torch.zeros(64).add_(1)


def test_a_write_through_data():
    model = ClampedData().double()
    with pytest.raises(HiddenWriteError, match="clamp_"), without_hidden_writes():
        model(X)
