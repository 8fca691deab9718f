"""State that a call writes: buffers, which are the result's own, and inputs, which are the caller's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tests.result.programs import close, optimize


class Counter(nn.Module):
    """Counts its calls, keeps a running mean whose view is read too, and scales by the count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        y = self.linear(x)
        self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y * self.steps + self.mean


def test_written_buffers_are_the_results_own() -> None:
    model = Counter().eval()
    reference = copy.deepcopy(model)
    fast = optimize(model, torch.randn(3, 4))
    for seed in range(4):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        assert close(fast(x), reference(x))
    assert int(model.steps) == 0
    assert int(fast.steps) == int(reference.steps) == 4
    assert close(fast.state_dict()["mean"], reference.mean)
    assert fast._engine._compile_program.calls == 1


def test_writing_state_is_no_change_of_weights() -> None:
    model = Counter().eval()
    fast = optimize(model, torch.randn(3, 4))
    fast(torch.randn(3, 4))
    snapshot = fast._engine._snapshot
    fast(torch.randn(3, 4))
    model(torch.randn(3, 4))
    fast(torch.randn(3, 4))
    assert fast._engine._snapshot is snapshot
    twin = copy.deepcopy(fast)
    twin(torch.randn(3, 4))
    snapshot = twin._engine._snapshot
    twin(torch.randn(3, 4))
    assert twin._engine._snapshot is snapshot


def test_state_survives_a_refold_and_a_copy_and_a_conversion() -> None:
    model = Counter().eval()
    fast, x = optimize(model, torch.randn(3, 4)), torch.randn(3, 4)
    fast(x)
    fast(x)
    with torch.no_grad():
        model.linear.weight.mul_(2)
    fast(x)
    twin = copy.deepcopy(fast).double()
    twin(x.double())
    assert (int(fast.steps), int(twin.steps)) == (3, 4)
    state = fast.state_dict()
    fast.load_state_dict({**state, "steps": torch.tensor(10)})
    fast(x)
    assert int(fast.steps) == 11
    assert int(model.steps) == 0


def test_gradients_with_written_state() -> None:
    model = Counter().eval()
    reference = copy.deepcopy(model)
    fast = optimize(model, torch.randn(3, 4))
    x = torch.randn(3, 4, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    fast(x).sum().backward()
    reference(y).sum().backward()
    assert close(x.grad, y.grad)
    assert not fast.mean.requires_grad


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y.mul_(2).add_(1)
        return self.linear(x) + y


def test_written_inputs_are_written() -> None:
    model = WritesInput().eval()
    fast = optimize(model, torch.randn(3, 4), torch.randn(3, 4))
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    expected = y * 2 + 1
    assert close(fast(x, y), model.linear(x) + expected)
    assert torch.equal(y, expected)


class TrainingNorm(nn.Module):
    """A norm that uses batch statistics even in evaluation, as some domain adaptation does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, 0.1)


def test_statistics_written_in_evaluation_with_gradients() -> None:
    model = TrainingNorm().eval()
    reference = copy.deepcopy(model)
    fast = optimize(model, torch.randn(3, 4))
    for _ in range(2):
        x = torch.randn(5, 4, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        fast(x).square().sum().backward()
        reference(y).square().sum().backward()
        assert float((x.grad - y.grad).abs().max()) < 1e-5
        assert close(fast(x.detach()), reference(y.detach()))
    assert close(fast.norm.running_var, reference.norm.running_var)
    assert torch.equal(model.norm.running_mean, torch.zeros(4))
