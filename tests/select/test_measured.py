"""Choices by real measurements: whatever is chosen, the result is that of the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rewrite import optimize


class Mixer(nn.Module):
    """A long causal convolution between linear layers over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.mix = nn.Conv1d(32, 32, 65, padding=64, groups=32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).transpose(1, 2)
        y = self.mix(y)[..., : x.shape[1]].transpose(1, 2)
        return x + self.down(y.relu())


@pytest.mark.parametrize("tune", ["quick", "full"])
def test_a_measured_program_is_the_model(tune):
    model, x = Mixer().eval(), torch.randn(2, 128, 16)
    fast = optimize(model, x, lower="eager", tune=tune, budget=1.0)
    expected = model.double()(x.double())
    model.float()
    torch.testing.assert_close(fast(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert fast.report.choices or fast.report.notes  # what was timed, or why nothing was
    with torch.no_grad():
        model.mix.weight.mul_(2)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert fast(x[:1]).shape == (1, 128, 16)


def test_layouts_of_results_are_those_of_the_model():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    for x in (torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)):
        fast = optimize(model, x, lower="eager", tune="quick")
        assert fast(x).stride() == model(x).stride()
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
