"""Interleaved timing, on a clock that the contenders move themselves."""

from __future__ import annotations

import pytest

from rewrite import timing
from rewrite.timing import interleave


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
    assert calls[:3] == ["slow", "quick", "slow"]
    assert [calls[i : i + 3] for i in (3, 6, 9)] == [
        ["slow", "quick", "slow"], ["quick", "slow", "slow"], ["slow", "slow", "quick"],
    ]  # fmt: skip


def test_a_slow_machine_makes_no_less_than_five_rounds(clock: list[float]):
    def call() -> None:
        clock[0] += 100.0

    found = interleave({"only": call}, rounds=15, warmup=0)
    assert found.timings["only"].rounds == 5


def test_two_medians_that_differ_are_noise(clock: list[float]):
    pace = iter(range(1, 100))

    def call() -> None:
        clock[0] += next(pace)

    found = interleave({"only": call}, rounds=5, warmup=0, seconds=1e9)
    # the rounds take (1, 2), (3, 4) with the order turned, (5, 6), ...
    assert found.timings["only"].median == pytest.approx(5000)
    assert found.noise == pytest.approx(abs(6 - 5) / 5)
