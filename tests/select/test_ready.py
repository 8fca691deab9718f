"""A program that was lowered while it was compared runs only where it is what would be lowered now."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codegen import Inductor
from rewrite import compat
from rewrite.compiler import Compiler
from rewrite.recipe import Recipe
from rewrite.result import OptimizedModule
from rewrite.select import Tuning
from rewrite.verdict import Verdict
from tests.select.scripted import Scripted
from tests.select.test_selection import STEPS, Mlp, X

needs_compiler = pytest.mark.skipif(compat.cpp_compiler() is None, reason="needs a C++ compiler")


class Counting(Inductor):
    """Counts what is compiled; what it gives runs operator by operator, with weights frozen."""

    compiled = 0

    def compile(self, graph, weights, inputs, frozen):
        self.compiled += 1
        from rewrite.lowering import run_eagerly

        run, baked = run_eagerly(graph, tuple(weights)), [tensor.clone() for tensor in weights.values()]
        return lambda inputs, given: run(inputs, baked if frozen else given)


def optimized(model: nn.Module) -> tuple[OptimizedModule, Counting]:
    """A result for which something was chosen, before its first call."""
    lowering = Counting()
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    compiler = Compiler(model, Recipe(STEPS, tuning=Tuning(lowering, target)))
    fast = OptimizedModule(model, compiler.compile, lowering)
    fast.specialize((X,), {})
    return fast, lowering


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrite.select.trial.Trial.pays", property(lambda trial: True))


def agrees(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_not_lowered_again():
    model = Mlp().eval()
    fast, lowering = optimized(model)
    before = lowering.compiled
    assert before == 2  # the program with choices and the one without
    assert agrees(fast(X), model(X))
    assert lowering.compiled == before
    assert fast.lowerings[0].seconds > 0


def test_it_is_lowered_again_when_weights_changed():
    model = Mlp().eval()
    fast, lowering = optimized(model)
    with torch.no_grad():
        model.one.weight.mul_(2)
    assert agrees(fast(X), model(X))
    assert lowering.compiled == 3


def test_it_is_lowered_again_for_another_number_of_threads():
    model, threads = Mlp().eval(), torch.get_num_threads()
    fast, lowering = optimized(model)
    torch.set_num_threads(threads + 1)
    try:
        fast(X)
    finally:
        torch.set_num_threads(threads)
    assert lowering.compiled == 3


def test_it_is_not_for_autocast():
    model = Mlp().eval()
    fast, _ = optimized(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(X).dtype == model(X).dtype == torch.bfloat16


def test_a_result_of_its_own_weights_captures_other_sizes_with_them():
    model = Mlp().eval()
    fast, _ = optimized(model)
    state = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    fast.load_state_dict(state)
    twin = Mlp().eval()
    twin.load_state_dict(state)
    other = torch.randn(2, 3, 20, 12)
    assert agrees(fast(X), twin(X))
    assert agrees(fast(other), twin(other))


def test_calls_that_are_not_lowered_measure_nothing():
    model = Mlp().eval()
    lowering = Counting()
    target = Scripted(price=lambda what, name: 0.1 if name else 1.0)
    compiler = Compiler(model, Recipe(STEPS, tuning=Tuning(lowering, target)))
    program = compiler.compile((X,), {}, False)
    assert not target.asked
    assert lowering.compiled == 0
    assert not program.report.choices


def test_choices_with_which_the_whole_is_not_equal_are_dropped(monkeypatch: pytest.MonkeyPatch):
    """Rounding may add up over layers that were checked one by one: then the program is made without choices."""
    compared: list[bool] = []

    def refusing(model, original, graph, args, kwargs):
        chosen = any("conv" in str(node.target) for node in graph.calls())
        compared.append(chosen)
        return Verdict(not chosen, "too far" if chosen else "", 1, 0.0)

    monkeypatch.setattr("rewrite.compiler.compare_whole", refusing)
    model = Mlp().eval()
    fast, lowering = optimized(model)
    assert compared == [True]
    assert not any(choice.chosen for choice in fast.report.choices)
    assert "would not be equal to the source: too far" in " ".join(str(fast.report).split())
    assert agrees(fast(X), model(X))
    assert lowering.compiled == 3  # what was lowered with the choices is not run
