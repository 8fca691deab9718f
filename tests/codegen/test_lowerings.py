"""Lowerings give what the model gives, whatever they do to weights and layouts."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from codegen import Eager, Inductor, OnnxRuntime, OpenVINO
from rewrite import compat
from rewrite.lowered import Lower
from tests.result.programs import close, image, net, optimize

needs_compiler = pytest.mark.skipif(compat.cpp_compiler() is None, reason="needs a C++ compiler")


class Maps(nn.Module):
    """Feature maps as they are, a view of the input, the input itself, a number, None, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.point = nn.Conv2d(16, 16, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        self.calls.add_(1)
        y = self.point(self.conv(x)).relu() * scale
        return {"y": y, "x": x, "view": x.flatten(1), "rows": x.shape[0], "none": None, "calls": self.calls * 2}


def check_maps(found: dict[str, Any], expected: dict[str, Any], x: Tensor) -> None:
    assert close(found["y"], expected["y"])
    assert found["y"].stride() == expected["y"].stride()
    assert found["x"] is x
    assert found["view"].data_ptr() == x.data_ptr()
    assert (found["rows"], found["none"]) == (expected["rows"], None)
    assert torch.equal(found["calls"], expected["calls"])


@pytest.mark.parametrize("kind", [
    Eager, pytest.param(Inductor, marks=[needs_compiler, pytest.mark.slow]),
    *(pytest.param(kind, marks=pytest.mark.skipif(bool(kind.missing()), reason=f"needs {kind.missing()}"))
      for kind in (OnnxRuntime, OpenVINO)),
])  # fmt: skip
def test_outputs_of_every_kind(kind: type[Any]) -> None:
    model = Maps().eval()
    reference = copy.deepcopy(model)
    fast = optimize(model, image(), 0.5, lowering=kind())
    for _ in range(2):
        for _ in range(2):
            x = image()
            check_maps(fast(x, 0.5), reference(x, 0.5), x)
        with torch.no_grad():
            for module in (model, reference):
                module.conv.weight.mul_(1.5)
                module.point.bias.add_(1)
    assert float(fast.calls) == 4


@needs_compiler
@pytest.mark.slow
def test_inductor_in_the_modes_of_the_caller() -> None:
    model, x = net(), image()
    fast = optimize(model, x, lowering=Inductor())
    with torch.inference_mode():
        assert close(fast(x), model(x))
    assert close(fast(x), model(x))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert fast(x).dtype is torch.bfloat16
        assert close(fast(x), model(x), 3e-2)
    leaf = image().requires_grad_()
    fast(leaf).sum().backward()
    assert leaf.grad is not None
    (plan, *_) = fast._engine._snapshot.plans.values()
    assert plan.static
    assert plan.frozen
    with torch.no_grad():
        model.stem[0].weight.mul_(2)
    assert close(fast(x), model(x))
    compiled = [plan.run for plan in fast._engine._snapshot.plans.values()]
    with torch.no_grad():
        model.stem[0].weight.mul_(2)
    assert close(fast(x), model(x))
    assert [plan.run for plan in fast._engine._snapshot.plans.values()] == compiled, "a refold costs no compilation"


def test_kernels_of_convolutions_are_laid_out_in_channels_last() -> None:
    from tests.result.programs import program

    graph = program(net(), (image(),), {})
    arranged = Inductor().arrange(graph, graph.weights)
    assert arranged["folded_2.weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(arranged["folded_2.weight"], graph.weights["folded_2.weight"])
    assert arranged["fc.weight"] is graph.weights["fc.weight"]


def test_the_default_depends_on_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    import codegen.inductor

    monkeypatch.setattr(codegen.inductor.compat, "cpp_compiler", lambda: "g++")
    assert isinstance(codegen.default_lowering(), Inductor)
    monkeypatch.setattr(codegen.inductor.compat, "cpp_compiler", lambda: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert isinstance(codegen.default_lowering(), Eager)
    assert set(codegen.LOWERINGS) == set(get_args(Lower))
