"""What a result is ready for: warm-ups, and calls unlike them."""

from __future__ import annotations

import copy
import logging
import pickle
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import rewrite
from rewrite import InputError, load
from rewrite.lowering import run_eagerly
from rewrite.result import OptimizedModule, Shapes
from rewrite.result.plans import STATIC
from tests.habits.models import counting
from tests.result.programs import Compiler, close, image, net
from tests.result.test_plans import Recorder

LAST = image().to(memory_format=torch.channels_last)


def made(policy: Any = "compile", *example: Tensor) -> tuple[nn.Module, OptimizedModule, Recorder]:
    model, lowering = net(), Recorder()
    fast = OptimizedModule(model, Compiler(model), lowering, shapes=Shapes(policy))
    if example:
        fast.specialize(example)
    return model, fast, lowering


def batches(lowering: Recorder) -> list[int]:
    return [shape[0] for shape, _ in lowering.compiled]


# -- warm-ups ---------------------------------------------------------------------------------------------------------


def test_warmup_compiles_and_runs_ahead() -> None:
    model, fast, lowering = made()
    fast.warmup(image(2))
    fast.warmup(image(3))
    fast.warmup(image(3))
    with torch.autocast("cpu", torch.bfloat16):
        fast.warmup(image(3))
    assert batches(lowering) == [2, 3, 3]
    assert close(fast(image(2)), model(image(2)))
    assert close(fast(image(3)), model(image(3)))
    with torch.autocast("cpu", torch.bfloat16):
        fast(image(3))
    assert batches(lowering) == [2, 3, 3]
    fast.warmup(image(2).requires_grad_())
    fast.warmup(image(2, 12))
    assert batches(lowering) == [2, 3, 3, 2]


class Noisy(nn.Module):
    """Draws numbers and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.linear(x) + torch.rand_like(x) + self.count


@pytest.mark.parametrize("lower", ["eager", "inductor"])
def test_warmup_leaves_no_trace(lower: Any) -> None:
    model = Noisy().eval()
    fast = rewrite.optimize(model, torch.randn(3, 4), lower=lower)
    x = torch.randn(2, 4)
    given = x.clone()
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    fast.warmup(x)
    fast.warmup(x.clone().requires_grad_())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]
    assert (float(fast.count), float(model.count)) == (0, 0)
    assert torch.equal(x, given)
    fast(x)
    assert (float(fast.count), float(model.count)) == (1, 0)


def test_announced_kinds_stay_compiled() -> None:
    _, fast, lowering = made("compile", image())
    warmed = range(3, 3 + STATIC + 2)
    for batch in warmed:
        fast.warmup(image(batch))
    for batch in range(20, 20 + STATIC + 2):
        fast(image(batch))
    known = len(lowering.compiled)
    for batch in warmed:
        fast(image(batch))
    assert len(lowering.compiled) == known


def test_what_was_compiled_already_is_kept_as_it_is() -> None:
    _, fast, lowering = made("compile", image())
    fast(image(3))
    fast.warmup(image(3))
    assert batches(lowering) == [3]


# -- calls that are new -----------------------------------------------------------------------------------------------


def test_new_shapes_run_operator_by_operator(caplog: Any) -> None:
    model, fast, lowering = made("eager", image())
    for x in (image(), image(5), LAST, image(2, 12)):
        assert close(fast(x), model(x))
        assert close(fast(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        fast(image())
    assert batches(lowering) == [2]
    assert fast._engine._compile_program.calls == 2, "an image size that no program takes is captured"
    caplog.clear()
    with caplog.at_level(logging.INFO, "rewrite"):
        fast(image(7))
        fast(image(7))
    events = [record for record in caplog.records if getattr(record, "event", "") == "new-shape"]
    assert [record.data for record in events] == [
        {"given": "f32[7, 3, 8, 8]", "ready": ["f32[2, 3, 8, 8]"], "policy": "eager"}
    ]
    fast.warmup(image(5))
    assert close(fast(image(5)), model(image(5)))
    assert batches(lowering) == [2, 5]


def test_new_shapes_are_errors() -> None:
    model, fast, lowering = made("error", image())
    assert close(fast(image()), model(image()))
    for x in (image(5), image(2, 12), image().double(), LAST):
        with pytest.raises(
            InputError, match=r"the result is not ready for \(f.*, only for \(f32\[2, 3, 8, 8\]\); call result\.warmup"
        ):
            fast(x)
    with pytest.raises(InputError, match=r"not ready for \(f32\[2, 3, 8, 8\] with strides \[192, 1, 24, 3\]\)"):
        fast(LAST)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="under autocast"):
        fast(image())
    assert fast._engine._compile_program.calls == 1
    fast.warmup(image(5))
    fast.warmup(image(2, 12))
    assert close(fast(image(5)), model(image(5)))
    assert close(fast(image(2, 12)), model(image(2, 12)))
    assert batches(lowering) == [2, 5, 2]


def test_gradients_and_threads_are_no_new_shapes() -> None:
    model, fast, _ = made("error", image())
    x = image().requires_grad_()
    fast(x).sum().backward()
    expected = image().requires_grad_()
    model(expected).sum().backward()
    assert close(x.grad, expected.grad)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert close(fast(image()), model(image()))
    finally:
        torch.set_num_threads(threads)


def test_arguments_are_named_as_they_are_given() -> None:
    model = counting()
    fast = rewrite.optimize(model, image(), lower="eager", on_new_shape="error")
    with pytest.raises(InputError, match=r"not ready for \(x=f32\[2, 3, 8, 8\]\), only for \(f32\[2, 3, 8, 8\]\)"):
        fast(x=image())
    fast.warmup(image(), 2.0, shift=torch.ones(5))
    with pytest.raises(InputError, match=r"\), \(f32\[2, 3, 8, 8\], 2\.0, shift=f32\[5\]\); call"):
        fast(image(), 3.0, shift=torch.ones(5))
    assert close(fast(image(), 2.0, shift=torch.ones(5))["y"], model(image(), 2.0, shift=torch.ones(5))["y"])


def test_changed_weights_leave_the_result_ready() -> None:
    model, fast, lowering = made("error", image())
    fast(image())
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(fast(image()), model(image()))
    assert batches(lowering) == [2, 2]
    fast.double()
    with pytest.raises(InputError, match=r"not ready for \(f64"):
        fast(image().double())
    fast.warmup(image().double())
    assert close(fast(image().double()), model.double()(image().double()))


def test_without_an_example_the_first_call_decides() -> None:
    model, fast, _ = made("error")
    with pytest.raises(InputError, match="pass inputs that the model accepts"):
        fast(torch.randn(2, 4, 8, 8))
    assert close(fast(image(3)), model(image(3)))
    with pytest.raises(InputError, match=r"only for \(f32\[3, 3, 8, 8\]\)"):
        fast(image(2))


def test_copies_keep_what_they_are_ready_for(tmp_path: Path) -> None:
    model = counting()
    fast = rewrite.optimize(model, image(), lower="eager", on_new_shape="error")
    fast.warmup(image(3))
    for found in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), rewrite.optimize(fast, release=True)):
        assert close(found(image(3))["y"], model(image(3))["y"])
        with pytest.raises(InputError, match=r"only for \(f32\[2, 3, 8, 8\]\), \(f32\[3, 3, 8, 8\]\)"):
            found(image(4))
        found.warmup(image(4))
        assert close(found(image(4))["y"], model(image(4))["y"])
    with pytest.raises(InputError, match="not ready"):
        fast(image(4))
    fast.save(tmp_path / "net")
    for given in ((), (model,)):
        found = load(tmp_path / "net", *given, lower="eager", on_new_shape="error")
        assert close(found(image(4))["y"], model(image(4))["y"])
        with pytest.raises(InputError, match=r"only for \(f32\[4, 3, 8, 8\]\)"):
            found(image(2))


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(InputError, match=r"on_new_shape='eagre' is unknown; did you mean 'eager'"):
        rewrite.optimize(net(), on_new_shape="eagre")  # type: ignore[arg-type]


def test_a_lowering_for_any_sizes_is_used_for_new_ones() -> None:
    class Dynamic(Recorder):
        def compile(self, graph: Any, weights: Any, inputs: Any, frozen: bool) -> Any:
            self.compiled.append((tuple(inputs[0].shape), frozen))
            return run_eagerly(graph, tuple(weights))

    model, lowering = net(), Dynamic(static=False)
    fast = OptimizedModule(model, Compiler(model), lowering, shapes=Shapes("eager"))
    fast.warmup(image())
    assert close(fast(image(5)), model(image(5)))
    assert {plan.arranged for plan in fast._engine._snapshot.plans.values()} == {True}
    assert batches(lowering) == [2]
