"""Sizes: a third batch, ``dynamic=True``, and what Dynamo makes of floats that modules hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.backend.compiling import Log, compiled
from tests.backend.models import EACH, MODELS, distance, images


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_a_third_batch_size_compiles_no_third_time(name):
    model, log = MODELS[name](), Log()
    fast = compiled(model)
    for batch in (2, 3, 5, 1):
        x = images(name, batch, seed=batch)
        assert distance(model, fast(x), x) < 8
    # one size, any size, and Dynamo's own special case of one
    assert len(log.rewritten()) <= 3
    assert "fold-constants" in log.rewrites()


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_dynamic_sizes_from_the_beginning(name):
    model, log = MODELS[name](), Log()
    fast = compiled(model, settings={"dynamic": True, "fullgraph": True})
    for batch in (2, 4):
        x = images(name, batch, seed=batch)
        assert distance(model, fast(x), x) < 8
    if name != "sequence":  # whose filters are made for one length
        x = torch.randn(2, 3, 96, 96)
        assert distance(model, fast(x), x) < 8
    assert len(log.rewritten()) == 1
    assert "fold-constants" in log.rewrites()


@torch.no_grad()
def test_a_float_of_a_module_is_part_of_the_program():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model[1].running_var.uniform_(0.01, 0.1)
    x, log = torch.randn(2, 3, 8, 8), Log()
    fast = compiled(model, settings={"dynamic": True})
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    model[1].eps = 0.5
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert log.rewrites().count("fold-batch-norm-after") == 2


@torch.no_grad()
def test_rules_hold_at_sizes_that_no_graph_has_numbers_for():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2)

        def forward(self, x):
            return self.wide(x) + self.narrow(x)

    model, log = Branches().eval(), Log()
    fast = compiled(model, settings={"dynamic": True})
    for height, width in ((9, 8), (8, 9), (1, 1), (30, 7)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert "merge-branches" in log.rewrites()
