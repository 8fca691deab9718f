"""Where elements tie for the extreme, gradients go where they went."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes import (
    CommutePooling,
    HoistPooling,
    ReductionAlgebra,
)
from rewrite import transform
from rewrite.pipeline import Pipeline
from tests.passes.blocks import Block
from tests.passes.rewriting import rewrite

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
