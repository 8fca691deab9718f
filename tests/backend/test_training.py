"""Training through the backend is training the model: twenty steps against eager, in float64.

Losses, gradients, parameters and running statistics are compared. Random choices of dropout and the like are switched
off, for the two would draw them in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.backend.compiling import Log, compiled
from tests.backend.models import EACH, MODELS, images

STEPS = 20
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}


def trained(name):
    model = MODELS[name]().double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "DropPath":
            module.eval()
    return model


def batches(name):
    for i in range(STEPS):
        x = images(name, 4, seed=i).double()
        yield x if name == "sequence" else x[..., :32, :32]


def backward(model, call, x):
    """The loss of a batch; the gradients are left in the model."""
    model.zero_grad()
    loss = call(x).square().mean()
    loss.backward()
    return loss.detach()


def assert_close(key, found, expected, scale):
    """Equal within 1e-7: the same operators on the same values; twenty steps blow up a rounding error of 1e-16 to 1."""
    assert float((found - expected).abs().max()) <= 1e-7 * scale, key


@pytest.mark.parametrize("name", EACH)
def test_twenty_steps_are_those_of_eager(name):
    model, twin = trained(name), trained(name)
    start = copy.deepcopy(model.state_dict())
    log, fast = Log(), compiled(model)
    for make in OPTIMIZERS.values():
        for net in (model, twin):
            net.load_state_dict(start)
        mine, theirs = make(model.parameters()), make(twin.parameters())
        for x in batches(name):
            loss, wanted = backward(model, fast, x), backward(twin, twin, x)
            assert_close("loss", loss, wanted, float(wanted.abs()))
            slopes = {key: parameter.grad for key, parameter in twin.named_parameters()}
            largest = max(float(gradient.abs().max()) for gradient in slopes.values())
            for key, parameter in model.named_parameters():
                assert_close(key, parameter.grad, slopes[key], largest)
            mine.step(), theirs.step()
            for (key, value), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
                assert_close(key, value, other, max(1.0, float(other.abs().max())))
    assert all(graph.gradients for graph in log.rewritten())
    assert len(log.graphs) == 1


def test_training_evaluation_and_training_again():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    twin = copy.deepcopy(model)
    log, fast = Log(), compiled(model)
    for i in range(4):
        x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
        for net, call in ((model.train(), fast), (twin.train(), twin)):
            backward(net, call, x)
            torch.optim.SGD(net.parameters(), lr=0.1).step()
        model.eval(), twin.eval()
        with torch.no_grad():
            torch.testing.assert_close(fast(x), twin(x), msg=str(i))
        torch.testing.assert_close(fast(x), twin(x))
    assert {graph.gradients for graph in log.rewritten()} == {True, False}


def test_merged_branches_are_differentiated():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.relu(self.wide(x) + self.narrow(x))

    model, log = Branches().double().train(), Log()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    fast = compiled(model, lower="inductor")
    found = torch.autograd.grad(fast(x).square().sum(), list(model.parameters()))
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert log.rewrites() == ["merge-branches"]


def test_dropout_stays_random():
    model, log = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).train(), Log()
    fast = compiled(model)
    x = torch.randn(8, 64)
    first, second = fast(x), fast(x)
    assert not torch.equal(first, second)
    assert 0.3 < float((first == 0).float().mean()) < 0.7
    assert len(log.rewritten()) == 1


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 1, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


@pytest.mark.parametrize(
    ("layer", "rule"), [(lambda: nn.Conv2d(3, 4, 3), "fold-batch-norm-after"), (Joined, "fold-behind-concatenation")]
)
def test_norms_stay_where_weights_are_trained_unless_asked_for(layer: Callable[[], nn.Module], rule: str):
    model = nn.Sequential(layer(), nn.BatchNorm2d(4)).double().eval()
    nn.init.normal_(model[1].running_mean)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for options, rewrites in (({}, []), ({"pipeline": "fold-batch-norm"}, [rule])):
        torch._dynamo.reset()
        log, fast = Log(), compiled(model, **options)
        found = torch.autograd.grad(fast(x).square().sum(), list(model.parameters()))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        assert log.rewrites() == rewrites
