"""Interleaved timing, on a clock that the contenders move themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from rewrite import timing
from rewrite.timing import interleave, settled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_medians_quartiles_and_the_noise_of_the_first(clock: list[float]):
    calls: list[str] = []

    def contender(name: str, seconds: float) -> object:
        def call() -> None:
            calls.append(name)
            clock[0] += seconds

        return call

    found = interleave({"slow": contender("slow", 0.004), "quick": contender("quick", 0.001)}, rounds=6, warmup=1)
    assert found.ratio("slow", "quick") == pytest.approx(4)
    assert found.timings["slow"].median == pytest.approx(4)
    assert found.timings["quick"].low == found.timings["quick"].high == pytest.approx(1)
    assert found.noise == pytest.approx(0, abs=1e-9)
    rounds = [calls[i : i + 3] for i in range(0, 21, 3)]
    assert all(sorted(one) == ["quick", "slow", "slow"] for one in rounds)
    assert len({one.index("quick") for one in rounds}) == 3  # not always in the same place


def test_a_slow_machine_makes_no_less_than_five_rounds(clock: list[float]):
    def call() -> None:
        clock[0] += 100.0

    found = interleave({"only": call}, rounds=15, warmup=0)
    assert found.timings["only"].rounds == 5


def test_two_medians_that_differ_are_noise(clock: list[float]):
    pace = iter([*range(1, 11)])

    def call() -> None:
        clock[0] += next(pace)

    found = interleave({"only": call}, rounds=5, warmup=0, seconds=1e9)
    # the rounds take 1 and 2, 3 and 4, ... seconds, in one order or the other
    assert found.timings["only"].median in (5000, 6000)
    assert 0 < found.noise <= 0.2


class Machine:
    """Calls that take as long as they say, and a machine that is sometimes busy."""

    def __init__(self, clock: list[float]):
        self.clock, self.busy, self.calls = clock, iter([1.0] * 10_000), []

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.clock[0] += seconds * next(self.busy)

        return run


def test_settled_times_on_a_quiet_machine(clock: list[float]):
    machine = Machine(clock)
    found = settled({"a": machine.call("a", 0.002), "b": machine.call("b", 0.001)}, rounds=4)
    assert found is not None
    assert found.timings["a"].median == pytest.approx(2)
    assert found.timings["b"].median == pytest.approx(1)
    assert found.timings["a"].rounds == 4
    assert found.noise == pytest.approx(0)


def test_short_calls_are_repeated(clock: list[float]):
    machine = Machine(clock)
    found = settled({"a": machine.call("a", 1e-5)}, rounds=3, least=1e-3)
    assert found is not None
    assert found.timings["a"].median == pytest.approx(0.01)
    assert len(machine.calls) == 2 + 3 * 2 * 100


def test_rounds_that_something_disturbed_are_discarded(clock: list[float]):
    machine = Machine(clock)
    quiet, disturbed = [1.0, 1.0, 1.0], [1.0, 1.0, 5.0]  # a, b, a again
    machine.busy = iter([1.0] * 4 + quiet + disturbed + quiet + disturbed + quiet)
    found = settled({"a": machine.call("a", 0.01), "b": machine.call("b", 0.01)}, rounds=3)
    assert found is not None
    assert found.timings["a"].rounds == 3
    assert found.timings["a"].high == pytest.approx(10)


def test_a_busy_machine_tells_nothing(clock: list[float]):
    machine = Machine(clock)
    machine.busy = itertools.cycle([1.0, 5.0])
    assert settled({"a": machine.call("a", 0.01)}, rounds=3, seconds=1e9) is None


def test_what_is_hopeless_is_run_four_times(clock: list[float]):
    machine = Machine(clock)
    found = settled({"a": machine.call("a", 0.01), "b": machine.call("b", 0.1)}, rounds=3, hopeless=5)
    assert found is not None
    assert machine.calls.count("b") == 4
    assert found.timings["b"].median == pytest.approx(100)


@pytest.mark.parametrize("first", ["a", "b"])
def test_one_disturbed_run_makes_nothing_hopeless(clock: list[float], first: str):
    machine = Machine(clock)
    calls = {"a": machine.call("a", 0.010), "b": machine.call("b", 0.012)}
    # the second run of the first one: something else was running
    machine.busy = itertools.chain([1.0, 50.0], itertools.repeat(1.0))
    found = settled({first: calls.pop(first), **calls}, rounds=3, hopeless=3)
    assert found is not None
    assert found.timings["a"].median == pytest.approx(10)
    assert found.timings["b"].median == pytest.approx(12)
