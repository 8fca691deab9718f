"""Lowerings: compiled once for each key, few are kept, frozen ones end with the weights they hold."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rewrite.graph import Graph
from rewrite.lowering import Executable, flat_module
from rewrite.result.plans import STATIC
from tests.result.programs import close, image, net, optimize
from tests.result.test_threads import together


@dataclass
class Recorder:
    """A lowering that notes what it was asked and holds only for what it was compiled for."""

    name: str = "recorder"
    freezes: bool = True
    static: bool = True
    compiled: list[tuple[tuple[int, ...], bool]] = field(default_factory=list)
    arranged: int = 0

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.arranged += 1
        return {name: tensor.clone() for name, tensor in weights.items()}

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        assert not torch.is_inference_mode_enabled()
        time.sleep(0.01)
        self.compiled.append((tuple(inputs[0].shape), frozen))
        module = flat_module(graph, tuple(weights))
        baked = tuple(tensor.clone() for tensor in weights.values())
        example = (inputs[0].shape, inputs[0].dtype, torch.is_autocast_enabled("cpu"))

        def run(inputs: Sequence[Any], given: Sequence[Tensor]) -> Sequence[Any]:
            assert (inputs[0].shape, inputs[0].dtype, torch.is_autocast_enabled("cpu")) == example
            return module(*inputs, *(baked if frozen else given))  # type: ignore[no-any-return]

        return run


def test_one_lowering_for_each_kind_of_call() -> None:
    model, lowering = net(), Recorder()
    fast = optimize(model, image(), lowering=lowering)
    strided = image().transpose(2, 3)
    for x in (image(), image(3), image(), strided, strided.clone(), image().to(memory_format=torch.channels_last)):
        for _ in range(2):
            assert close(fast(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        fast(image())
    fast(image())
    assert len(lowering.compiled) == 5
    assert all(frozen for _, frozen in lowering.compiled)
    fast(image().requires_grad_()).sum().backward()
    assert len(lowering.compiled) == 5, "gradients to inputs run operator by operator"


def test_the_lowering_that_was_not_used_for_longest_goes() -> None:
    lowering = Recorder()
    fast = optimize(net(), image(STATIC + 2), lowering=lowering)
    for batch in range(1, STATIC + 1):
        fast(image(batch))
    fast(image(1))
    fast(image(STATIC + 1))
    assert len(lowering.compiled) == STATIC + 1
    fast(image(1))
    assert len(lowering.compiled) == STATIC + 1
    fast(image(2))
    assert lowering.compiled[-1] == ((2, 3, 8, 8), True)
    assert len(fast._engine._snapshot.plans) == STATIC


def test_frozen_weights_end_at_the_first_change() -> None:
    model, lowering, x = net(), Recorder(), image()
    fast = optimize(model, x, lowering=lowering)
    fast(x)
    assert lowering.arranged == 0
    for _ in range(3):
        with torch.no_grad():
            model.stem[1].weight.mul_(1.1)
            model.fc.weight.mul_(1.1)
        assert close(fast(x), model(x))
    assert [frozen for _, frozen in lowering.compiled] == [True, False]
    assert lowering.arranged == 3


def test_a_change_before_the_first_call_keeps_weights_frozen() -> None:
    model, lowering, x = net(), Recorder(), image()
    fast = optimize(model, x, lowering=lowering)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(fast(x), model(x))
    fast.load_state_dict(net(5).state_dict())
    assert close(fast(x), net(5)(x))
    assert [frozen for _, frozen in lowering.compiled] == [True, True], "loading is announced, not discovered"


def test_gradients_use_weights_as_they_are_not_as_arranged() -> None:
    model, x = net(), image()

    class Wrong(Recorder):
        def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    fast = optimize(model, x, lowering=Wrong(freezes=False))
    assert close(fast(x), model(x)), "nothing is arranged before a change"
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(fast(image().requires_grad_()), model(x))


def test_a_lowering_for_any_size_is_compiled_once() -> None:
    model = net()

    class Dynamic(Recorder):
        def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Any, frozen: bool) -> Executable:
            self.compiled.append((tuple(inputs[0].shape), frozen))
            module = flat_module(graph, tuple(weights))
            return lambda inputs, given: module(*inputs, *given)

    lowering = Dynamic(static=False, freezes=False)
    fast = optimize(model, image(), lowering=lowering)
    for batch in range(1, 20):
        assert close(fast(image(batch)), model(image(batch)))
    assert lowering.compiled == [((1, 3, 8, 8), False)]


def test_a_compiler_that_fails_is_reported_once() -> None:
    class Broken(Recorder):
        def compile(self, *args: Any) -> Executable:
            raise RuntimeError("no space left\nand a long trace")

    model, x = net(), image()
    fast = optimize(model, x, lowering=Broken())
    message = "recorder cannot compile the model, which runs operator by operator from now on: no space left$"
    with pytest.warns(RuntimeWarning, match=message):
        assert close(fast(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(fast(image(3)), model(image(3)))


def test_threads_wait_for_one_compilation() -> None:
    model, lowering, x = net(), Recorder(), image()
    fast = optimize(model, x, lowering=lowering)
    expected = model(x)

    def work(index: int) -> None:
        assert close(fast(image(1 + index % 2)), expected if index % 2 else model(image(1)))

    assert together(8, work) == []
    assert len(lowering.compiled) == 2


def test_a_copy_shares_lowerings_until_its_weights_change() -> None:
    import copy

    model, lowering, x = net(), Recorder(), image()
    fast = optimize(model, x, lowering=lowering)
    before = fast(x)
    twin = copy.deepcopy(fast)
    assert torch.equal(twin(x), before)
    assert len(lowering.compiled) == 1
    with torch.no_grad():
        twin.fc.weight.mul_(2)
        twin.fc.bias.mul_(2)
    assert close(twin(x), 2 * before)
    assert torch.equal(fast(x), before)
    assert [frozen for _, frozen in lowering.compiled] == [True, False]
