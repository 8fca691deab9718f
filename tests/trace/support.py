"""Checks that the tests of capture share. The oracle is always the eager model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from rewrite.trace import Capture, capture


class Call(nn.Module):
    """A module around a function ``forward(self, *args)``, with any attributes; modules and tensors are registered."""

    def __init__(self, function: Callable[..., Any], **attributes: Any):
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def module(function: Callable[..., Any], **attributes: Any) -> nn.Module:
    """A module in evaluation mode that calls ``function(self, ...)``."""
    return Call(function, **attributes).eval()


def targets(captured: Capture) -> list[str]:
    """The operators of the graph, in order, as 'aten.add.Tensor'."""
    return [str(node.target) for node in captured.graph.calls()]


def own(args: Any) -> Any:
    """Inputs that may be written."""
    return copy.deepcopy(args)


def assert_equal(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The same structure, and tensors equal up to rounding."""
    a, spec_a = tree_flatten(found)
    b, spec_b = tree_flatten(expected)
    assert spec_a == spec_b
    for x, y in zip(a, b, strict=True):
        if isinstance(y, Tensor):
            torch.testing.assert_close(x, y, rtol=rtol, atol=atol, equal_nan=True)
        else:
            assert type(x) is type(y)
            assert x == y


def assert_captures(model: nn.Module, *args: Any, training: bool = False, **kwargs: Any) -> Capture:
    """Capture, and compare the graph's module with an eager copy of the model: outputs and inputs after the call."""
    captured = capture(model, args, kwargs, training=training)
    captured.graph.check()
    run = captured.graph.copy().to_module({name: own(t) for name, t in captured.graph.weights.items()})
    try:
        eager = copy.deepcopy(model)
    except (RuntimeError, TypeError):
        eager = model  # holds what cannot be copied; such models in these tests keep no state
    mine, theirs = own((args, kwargs)), own((args, kwargs))
    with torch.no_grad():
        assert_equal(run(*mine[0], **mine[1]), eager(*theirs[0], **theirs[1]))
    assert_equal(mine, theirs)
    return captured


class Picture:
    """A model bit for bit: tensors, versions, flags, hooks, attributes, modes, gradients, and torch's generator."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.tensors = {
            name: (t, t.detach().clone(), t._version, t.requires_grad, t.grad, t.data_ptr())
            for name, t in self._tensors()
        }
        self.modules = [(name, m, m.training, self._attributes(m)) for name, m in model.named_modules()]
        self.rng = torch.get_rng_state()

    def _tensors(self) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        for name, m in self.model.named_modules():
            for holder in (m._parameters, m._buffers, m.__dict__):
                found += [(f"{name}.{key}", t) for key, t in holder.items() if isinstance(t, Tensor)]
        return found

    @staticmethod
    def _attributes(m: nn.Module) -> dict[str, Any]:
        simple = (bool, int, float, str, type(None))
        values: dict[str, Any] = {}
        for key, value in m.__dict__.items():
            if isinstance(value, simple):
                values[key] = value
            elif isinstance(value, dict):
                values[key] = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, (list, set)):
                values[key] = [id(v) for v in value]
            else:
                values[key] = id(value)
        return values

    def assert_same(self) -> None:
        now = dict(self._tensors())
        assert list(now) == list(self.tensors)
        for name, (tensor, value, version, requires_grad, grad, pointer) in self.tensors.items():
            assert now[name] is tensor, name
            assert type(tensor) in (Tensor, nn.Parameter), name
            assert tensor._version == version, name
            assert tensor.requires_grad == requires_grad, name
            assert tensor.grad is grad, name
            assert tensor.data_ptr() == pointer, name
            assert tensor.is_meta or torch.equal(
                tensor.detach().view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)
            ), name
        assert [(n, m, m.training, self._attributes(m)) for n, m in self.model.named_modules()] == self.modules
        assert torch.equal(torch.get_rng_state(), self.rng)
