"""Modules that are not functions: what a first call changes is found, named, and refused or noted."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.errors import CaptureError
from rewrite.trace import capture
from tests.trace.support import Picture, assert_captures, module
from tests.trace.test_refusals import X, assert_refuses


class Flagged(nn.Module):
    """Takes a norm on its first call and divides by it ever after."""

    def __init__(self, flag: str) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4))
        self.register_buffer("norm", torch.ones(()))
        self.flag = flag
        if flag == "buffer":
            self.register_buffer("done", torch.tensor(False))
        else:
            self.done = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            if self.flag == "in place":
                self.norm.copy_(self.kernel.detach().norm())
            else:
                self.norm = self.kernel.detach().norm()
            self.done = torch.tensor(True) if self.flag == "buffer" else True
        return x * self.kernel / self.norm


@pytest.mark.parametrize("flag", ["plain", "buffer", "in place"])
def test_initialization_on_the_first_call(flag: str) -> None:
    model = Flagged(flag).eval()
    assert_refuses(
        model, CaptureError, "initializes itself on its first call", "'norm' (1.0, then", "call the model once"
    )
    with torch.no_grad():
        model(X)
    decided = ("forward decides on the value of 'done', which is True",) if flag == "buffer" else ()
    assert assert_captures(model, X).notes == decided


def test_buffer_registered_in_forward() -> None:
    class Lazy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "mean"):
                self.register_buffer("mean", x.mean(0))
            return x - self.mean

    model = Lazy().eval()
    assert_refuses(model, CaptureError, "registers 'mean' in forward", "call the model once")
    with torch.no_grad():
        model(X)
    captured = assert_captures(model, X)
    assert captured.graph.signature.mutations == ()
    x = torch.randn(3, 4)
    before = x.clone()
    captured.graph.to_module()(x)
    assert torch.equal(x, before)


def test_submodule_made_in_forward() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: nn.Module | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.inner is None:
                self.inner = nn.Linear(x.shape[1], 2)
            return self.inner(x)

    assert_refuses(Lazy().eval(), CaptureError, "registers 'inner.bias' in forward")


@pytest.mark.parametrize("way", ["data", "in place"])
def test_weights_rescaled_once(way: str) -> None:
    class Rescaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.scaled = False

        def forward(self, x: Tensor) -> Tensor:
            if not self.scaled:
                if way == "data":
                    self.weight.data.mul_(0.5)
                else:
                    with torch.no_grad():
                        self.weight.mul_(0.5)
                self.scaled = True
            return x * self.weight

    assert_refuses(Rescaled().eval(), CaptureError, "initializes itself", "'weight'", "call the model once")


def test_weights_written_on_every_call_out_of_sight() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.weight.data.mul_(0.5)
        return x.sum() + 0 * self.weight

    assert_refuses(module(forward, weight=nn.Parameter(torch.ones(4))), CaptureError, "data")


def test_python_counter_that_matters() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls

    assert_refuses(module(forward, calls=0), CaptureError, "'calls' (0, then 1)", "depends on it")


def test_python_list_that_matters() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.log.append(1.0)
        return x * len(self.log)

    assert_refuses(module(forward, log=[]), CaptureError, "'log[0]' (nothing, then 1.0)")


def test_last_output_kept_as_state() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = x if self.previous is None else x + self.previous
        self.previous = out
        return out

    assert_refuses(module(forward, previous=None), CaptureError, "'previous'")

    def resets(self: Any, x: Tensor) -> Tensor:
        out = x + self.previous
        self.previous = x * 2
        return out

    model = module(resets)
    model.__dict__["previous"] = torch.zeros(3, 4)
    assert_refuses(model, CaptureError, "'previous'")
    # after a call on the same example nothing differs, and the old value would be taken for a constant
    model(X)
    assert_refuses(model, CaptureError, "reads 'previous' and assigns it anew")


def test_counter_that_does_not_matter_is_noted() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x.sum()
        self.seen["last"] = x.shape[1]
        return x + 1

    model = module(forward, calls=0, seen={})
    picture = Picture(model)
    (note,) = assert_captures(model, X).notes
    for phrase in ("'calls' (0, then 1)", "'cache' (nothing, then", "\"seen['last']\"".strip('"'), "forward assigns"):
        assert phrase in note
    picture.assert_same()
    assert not hasattr(model, "cache")


def test_cache_in_a_dict_is_noted_and_recomputed() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(2))
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if "cpu" not in self.cache:
                self.cache["cpu"] = self.bias[torch.tensor([0, 1, 0, 1])]
            return x + self.cache["cpu"]

    model = Biased().eval()
    captured = assert_captures(model, X)
    assert "cache['cpu']" in captured.notes[0]
    assert captured.graph.weights["bias"] is model.bias


def test_streaming_state_in_a_buffer_is_captured() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.state.mul_(0.5).add_(x[0])
        return x + self.state

    model = module(forward, state=torch.zeros(4))
    run = assert_captures(model, X).graph.to_module()
    expected = torch.zeros(4)
    for _ in range(3):
        x = torch.randn(3, 4)
        expected = 0.5 * expected + x[0]
        torch.testing.assert_close(run(x), x + expected)


def test_hook_that_keeps_activations_sees_no_fakes_on_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    model.seen = []
    model[0].register_forward_hook(lambda m, args, out: None)
    bound = Recorder()
    model.recorder = bound
    model[0].register_forward_hook(bound.hook)
    capture(model, (X,))
    assert bound.outputs == []


class Recorder:
    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def hook(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.outputs.append(out)


def test_what_cannot_be_copied_is_shared_and_put_back() -> None:
    class Guarded:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.calls = 0

    def forward(self: Any, x: Tensor) -> Tensor:
        with self.guarded.lock:
            self.guarded.calls += 1
        self.count += 1
        return self.linear(x)

    model = module(forward, guarded=Guarded(), linear=nn.Linear(4, 4), count=0)
    picture = Picture(model)
    captured = capture(model, (X,))
    picture.assert_same()
    assert model.guarded.calls == 0
    assert captured.graph.weights["linear.weight"] is model.linear.weight
    torch.testing.assert_close(captured.graph.to_module()(X), model.linear(X))


# -- the user's model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_model_is_untouched(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    model[0].register_forward_hook(lambda m, args, out: out + 1)
    model[1].weight.requires_grad_(False)
    model.train(training)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    inside = x.detach().clone()
    picture = Picture(model)
    capture(model, (x,), training=training)
    picture.assert_same()
    assert x._version == 0
    assert x.grad is None
    assert torch.equal(x, inside)


def test_inputs_are_untouched() -> None:
    x, y = torch.randn(3, 4), {"y": torch.randn(3, 4)}
    values = (x.clone(), y["y"].clone())
    capture(module(lambda self, x, y: x.add_(y["y"].mul_(2)) * 1), (x, y))
    assert torch.equal(x, values[0])
    assert torch.equal(y["y"], values[1])
    assert x._version == y["y"]._version == 0


@pytest.mark.parametrize("seed_used", [True, False])
def test_generators_are_untouched(seed_used: bool) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    capture(module(lambda self, x: x + torch.rand(4) if seed_used else x), (X,))
    assert torch.equal(torch.rand(4), expected)
