"""Autocast around a call and inside it, regions without gradients, inference mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.backend.compiling import Log, compiled
from tests.backend.models import EACH, MODELS, images


def error(found, truth):
    return float((found.double() - truth.double()).abs().max()) / float(truth.double().abs().max())


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_autocast_around_the_call(name):
    model, log = MODELS[name](), Log()
    x = images(name, 2, seed=3)
    fast = compiled(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(x), model(x)
    assert found.dtype == expected.dtype
    truth = copy.deepcopy(model).double()(x.double())
    assert error(found, truth) < max(3 * error(expected, truth), 2e-2)
    # outside of autocast it is another program, and an exact one
    assert error(fast(x), truth) < 1e-4
    assert len(log.graphs) == 2
    # a complex spectrum under autocast is beyond what can be written into a graph
    assert name == "sequence" or "fold-constants" in log.rewrites()


class Modes(nn.Module):
    """A batch norm behind a convolution, whose surroundings switch modes on and off."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.3, 2)

    def forward(self, x, mode):
        if mode == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                y = self.norm(self.conv(x))
            with torch.autocast("cpu", enabled=False):
                return self.head(y.float().mean((2, 3)))
        y = self.norm(self.conv(x))
        if mode == "no grad":
            with torch.no_grad():
                scale = y.mean((2, 3), keepdim=True) * 2
                scale = scale + self.conv.bias[:, None, None]
            y = y * scale
        if mode == "grad inside no grad":
            with torch.no_grad(), torch.enable_grad():
                y = y * 2
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("mode", ["plain", "autocast", "no grad", "grad inside no grad"])
@pytest.mark.parametrize("gradients", [False, True])
def test_modes_inside_the_call(mode, gradients):
    model, twin = Modes().eval(), Modes().eval()
    twin.load_state_dict(model.state_dict())
    x, log = torch.randn(2, 3, 9, 9), Log()
    fast = compiled(model)
    with torch.set_grad_enabled(gradients):
        found, expected = fast(x, mode), twin(x, mode)
    tolerance = 3e-2 if mode == "autocast" else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert log.graphs
    if gradients:
        found.square().sum().backward()
        expected.square().sum().backward()
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=tolerance, atol=10 * tolerance, msg=name)
    if mode == "grad inside no grad" and not gradients:
        assert "gradients are switched on" in log.graphs[0].reason
        return
    assert log.rewritten()
    if not gradients:
        # under autocast the norm of bfloat16 values has float32 parameters, and is folded all the same
        assert "fold-batch-norm-after" in log.rewrites()


@torch.no_grad()
def test_autocast_switched_off_inside_autocast():
    model, log = Modes().eval(), Log()
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(x, "autocast"), model(x, "autocast")
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
    assert log.rewritten()


def test_inference_mode_and_no_grad_and_frozen_parameters_fold():
    model = Modes().eval()
    x = torch.randn(2, 3, 9, 9)
    fast = compiled(model)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            log = Log()
            torch.testing.assert_close(fast(x, "plain"), model(x, "plain"), rtol=1e-4, atol=1e-5)
            assert "fold-constants" in log.rewrites()
    model.requires_grad_(False)
    log = Log()
    torch.testing.assert_close(fast(x, "plain"), model(x, "plain"), rtol=1e-4, atol=1e-5)
    assert not any(graph.gradients for graph in log.graphs)


def test_gradients_of_the_input_alone():
    model, log = Modes().eval().requires_grad_(False), Log()
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(model)(x, "plain").square().sum(), x)
    (expected,) = torch.autograd.grad(model(x, "plain").square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert log.rewritten()[0].gradients
