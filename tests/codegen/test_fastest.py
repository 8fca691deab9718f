"""The fastest lowering is kept, by a margin that is more than the noise; what it was chosen for can be read."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewrite
from codegen import Eager, Fastest, OnnxRuntime, fastest
from rewrite.lowered import Choice
from rewrite.timing import Comparison, Timing
from tests.result.programs import close, image, net, optimize


class Tried(Eager):
    """Runs eagerly, and counts its executables and their runs."""

    def __init__(self, name: str, fails: str = "") -> None:
        self.name, self.fails = name, fails
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.runs = 0

    def compile(self, *args: Any) -> Any:
        if self.fails:
            raise ValueError(self.fails)
        run = super().compile(*args)

        def counted(inputs: Any, weights: Any) -> Any:
            self.runs += 1
            return run(inputs, weights)

        self.alive.add(counted)
        return counted


Timed = Callable[[Mapping[str, float], float], dict[str, Tried]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Lowerings with given times, and the noise; a time of zero fails to compile."""

    def given(times: Mapping[str, float], noise: float) -> dict[str, Tried]:
        tried = {name: Tried(name, "" if time else "no such operator") for name, time in times.items()}

        def interleave(calls: Mapping[str, Callable[[], Any]], *rest: Any) -> Comparison:
            for call in calls.values():
                call()
            return Comparison({name: Timing(times[name], 0, 0, 5) for name in calls}, noise)

        monkeypatch.setattr(fastest, "candidates", lambda *settings: tried)
        monkeypatch.setattr(fastest, "interleave", interleave)
        return tried

    return given


def test_the_fastest_is_kept_and_the_others_are_freed(timed: Timed, caplog: pytest.LogCaptureFixture) -> None:
    tried = timed({"inductor": 18.93, "eager": 25.3, "onnxruntime": 17.2, "openvino": 2100.4}, 0.05)
    model, x = net(), image()
    fast = optimize(model, x, lowering=Fastest())
    with caplog.at_level(logging.INFO, "rewrite"):
        assert close(fast(x), model(x))
    (lowered,) = fast.lowerings
    text = "fastest: onnxruntime (17.2 ms; inductor 18.9, eager 25.3, openvino 2100)"
    assert str(lowered) == text
    assert f"({text})" in repr(fast)
    assert lowered.choice == Choice("onnxruntime", {"inductor": 18.93, "eager": 25.3, "onnxruntime": 17.2,
                                                   "openvino": 2100.4}, 0.05)  # fmt: skip
    data = [record.data for record in caplog.records if getattr(record, "event", "") == "fastest"]  # type: ignore[attr-defined]
    assert data == [{"lowering": "onnxruntime", "milliseconds": lowered.choice.milliseconds, "noise": 0.05}]
    fast(x)
    gc.collect()
    assert {name: (each.runs, len(each.alive)) for name, each in tried.items()} == {
        "inductor": (3, 0), "eager": (3, 0), "onnxruntime": (5, 1), "openvino": (3, 0),
    }  # fmt: skip


@pytest.mark.parametrize(("times", "noise", "kept"), [
    ({"inductor": 10.0, "eager": 9.4}, 0.05, "eager"),
    ({"inductor": 10.0, "eager": 9.6}, 0.05, "inductor"),
    ({"inductor": 10.0, "eager": 9.85}, 0.0, "inductor"),
    ({"inductor": 10.0, "eager": 9.7}, 0.0, "eager"),
    ({"inductor": 10.0, "eager": 11.0}, 0.0, "inductor"),
    ({"eager": 10.0, "onnxruntime": 9.6, "openvino": 9.5}, 0.04, "openvino"),
])  # fmt: skip
def test_the_default_stays_within_the_noise(timed: Timed, times: dict[str, float], noise: float, kept: str) -> None:
    timed(times, noise)
    fast = optimize(net(), image(), lowering=Fastest())
    fast(image())
    assert fast.lowerings[0].choice.name == kept


def test_what_cannot_compile_is_left_out(timed: Timed, caplog: pytest.LogCaptureFixture) -> None:
    timed({"inductor": 0.0, "eager": 2.0, "onnxruntime": 0.0, "openvino": 1.0}, 0.0)
    fast = optimize(net(), image(), lowering=Fastest())
    with caplog.at_level(logging.INFO, "rewrite"):
        fast(image())
    assert fast.lowerings[0].choice.milliseconds == {"eager": 2.0, "openvino": 1.0}
    left = [record.data for record in caplog.records if getattr(record, "event", "") == "lowering-failed"]  # type: ignore[attr-defined]
    assert left == [{"lowering": name, "reason": "no such operator"} for name in ("inductor", "onnxruntime")]


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_random_numbers_are_drawn_for_the_user_alone(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    timed({"eager": 2.0, "openvino": 1.0}, 0.0)
    monkeypatch.setattr(fastest, "available", lambda: False)
    model, x = Noisy().eval(), torch.zeros(4)
    fast = optimize(model, x, lowering=Fastest())
    torch.manual_seed(5)
    found = fast(x)
    torch.manual_seed(5)
    assert torch.equal(found, model(x))
    assert fast.lowerings[0].choice is None


def test_weights_that_change_and_autocast_take_the_default(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = timed({"eager": 2.0, "openvino": 1.0}, 0.0)
    monkeypatch.setattr(fastest, "available", lambda: False)
    model, x = net(), image()
    fast = optimize(model, x, lowering=Fastest())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert close(fast(x), model(x), 3e-2)
    assert fast.lowerings[0].choice is None
    fast(x)
    assert fast.lowerings[1].choice is not None
    before = [each.runs for each in tried.values()]
    for _ in range(2):
        with torch.no_grad():
            model.stem[0].weight.mul_(1.5)
        assert close(fast(x), model(x))
    assert [lowered.choice for lowered in fast.lowerings] == [None]
    assert [each.runs for each in tried.values()] == before


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        x.mul_(2)
        return x + self.calls


@pytest.mark.skipif(bool(OnnxRuntime.missing()), reason=f"needs {OnnxRuntime.missing()}")
def test_timing_changes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "available", lambda: False)
    fast = optimize(Counter().eval(), torch.ones(3), lowering=Fastest())
    for i in (1, 2):
        x = torch.ones(3)
        assert torch.equal(fast(x), torch.full((3,), 2.0 + i))
        assert torch.equal(x, torch.full((3,), 2.0))
        assert float(fast.calls) == i
    times = fast.lowerings[0].choice.milliseconds
    assert set(times) <= {"eager", "onnxruntime", "openvino"}  # what is hopeless is not timed
    assert min(times.values()) > 0


@pytest.mark.skipif(bool(OnnxRuntime.missing()), reason=f"needs {OnnxRuntime.missing()}")
def test_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "available", lambda: False)
    model, x = net(), image()
    fast = rewrite.optimize(model, x, lower="fastest")
    for batch in (2, 3):
        assert close(fast(image(batch)), model(image(batch)))
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(fast(x), model(x))


def test_what_is_not_installed_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("OnnxRuntime", "OpenVINO"):
        monkeypatch.setattr(getattr(fastest, kind), "missing", classmethod(lambda cls: ["onnx"]))
    monkeypatch.setattr(fastest, "available", lambda: False)
    assert list(fastest.candidates()) == ["eager"]
    monkeypatch.setattr(fastest, "available", lambda: True)
    assert list(fastest.candidates()) == ["inductor", "eager"]
