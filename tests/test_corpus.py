"""The corpus is fit for its use: nothing constant, nothing exploded, nothing dead, the same every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.corpus import CORPUS, input_for, load, randomize


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_outputs_are_of_order_one_and_depend_on_the_input(name: str) -> None:
    model = randomize(load(name))
    # Another draw than the one that the statistics were measured on.
    output = run(model, input_for(model, batch=2, seed=1))
    assert output.abs().max() < 100
    assert output.std() > 0.05
    assert (output[0] - output[1]).abs().mean() > 1e-3
    for parameter in model.parameters():
        assert parameter.numel() == 1 or parameter.std() > 1e-3


@pytest.mark.corpus
def test_networks_are_reproducible() -> None:
    first, second, other = (randomize(load("resnet18", seed), seed) for seed in (0, 0, 1))
    inputs = input_for(first)
    assert torch.equal(inputs, input_for(second))
    assert torch.equal(run(first, inputs), run(second, inputs))
    assert not torch.equal(run(first, inputs), run(other, inputs))


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    randomize(load("convnext_atto"))
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_and_tiny_parameters_are_replaced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    weight = model[0].weight.detach().clone()
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[1].weight)
    randomize(model, inputs=torch.randn(2, 3, 8, 8))
    assert torch.equal(model[0].weight, weight)
    assert (model[0].bias != 0).all()
    scale = model[1].weight.abs()
    assert ((scale >= 0.5) & (scale <= 1.5)).all()
    assert not torch.equal(model[1].running_mean, torch.zeros(8))
    assert not torch.equal(model[1].running_var, torch.ones(8))
