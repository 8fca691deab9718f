"""Gradients where writes and regions without gradients are in the way are those of eager."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.backend.compiling import Log, compiled
from tests.writing import HIDDEN, SEEN, ClampedActivation


def assert_trains_like(model: nn.Module, call) -> None:
    """Two steps give the gradients and buffers of eager."""
    twin = copy.deepcopy(model)
    for i in range(2):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for net, run in ((model, call), (twin, twin)):
            net.zero_grad()
            run(x.clone()).square().sum().backward()
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), name
            if mine.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
            torch.testing.assert_close(mine, theirs, msg=name)
        for mine, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("make", HIDDEN)
def test_writes_that_autograd_does_not_see(make):
    model, log = make().double(), Log()
    assert_trains_like(model, compiled(model))
    (graph,) = log.graphs
    assert "to a value with gradients, where autograd does not see it" in graph.reason


@pytest.mark.parametrize("make", SEEN)
def test_writes_that_it_sees_or_need_not(make):
    model, log = make().double(), Log()
    assert_trains_like(model, compiled(model))
    assert len(log.rewritten()) == 1


def test_writes_without_gradients_are_no_matter():
    model, log = ClampedActivation(), Log()
    with torch.no_grad():
        x = torch.randn(5, 3)
        torch.testing.assert_close(compiled(model)(x), model(x))
    assert log.rewritten()
