"""Decomposing with remembered overrides: what torch gives, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import fake_impls
from torch.export import exported_program

from rewrite import compat

aten = torch.ops.aten


class Net(nn.Module):
    """Composite operators, one inside a region without grad, and one that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm(self.conv(x))).flatten(2)
        with torch.no_grad():
            y = F.linear(y, y[0])
        y.add_(1)
        return F.scaled_dot_product_attention(y, y, y)


def exported(training: bool = False) -> Any:
    return torch.export.export(Net().train(training), (torch.randn(2, 3, 8, 8),), strict=False)


def text(program: Any) -> str:
    return str(program.graph_module.graph)


def kernels() -> dict[Any, Any]:
    packets = [getattr(aten, name) for name in dir(aten) if not name.startswith("_")]
    overloads = [getattr(packet, name) for packet in packets if hasattr(packet, "overloads")
                 for name in packet.overloads()]  # fmt: skip
    return {overload: dict(overload.py_kernels) for overload in overloads}


@pytest.mark.parametrize("training", [False, True])
def test_programs_are_those_of_torch(training: bool) -> None:
    program = exported(training)
    expected = text(program.run_decompositions({}))
    for _ in range(3):
        assert text(compat.decomposed(program)) == expected


def test_nothing_is_left_behind() -> None:
    program = exported()
    program.run_decompositions({})
    before, rules = kernels(), dict(fake_impls.op_implementations_dict)
    for _ in range(2):
        compat.decomposed(program)
        assert kernels() == before
        assert fake_impls.op_implementations_dict == rules


def test_nothing_is_left_behind_by_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    program = exported()
    compat.decomposed(program)
    before, override = kernels(), exported_program._override_composite_implicit_decomp

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ArithmeticError("no")

    monkeypatch.setattr(torch.export._trace, "_export_to_aten_ir", fail)
    with pytest.raises(ArithmeticError):
        compat.decomposed(program)
    assert kernels() == before
    assert exported_program._override_composite_implicit_decomp is override


def test_an_operator_that_changed_meanwhile_is_overridden_anew() -> None:
    compat.decomposed(exported())
    operator, key = aten.linear.default, torch._C.DispatchKey.AutogradOther
    saved = dict(operator.py_kernels)
    operator.py_impl(torch._C.DispatchKey.PrivateUse1)(lambda *args: None)
    try:
        changed = dict(operator.py_kernels)
        assert text(compat.decomposed(exported())) == text(exported().run_decompositions({}))
        assert operator.py_kernels == changed
        assert key not in changed
    finally:
        operator.py_kernels.clear()
        operator.py_kernels.update(saved)
        operator._dispatch_cache.clear()
