"""Timing that survives a shared machine: interleaved rounds, medians, and an A/A pair that shows the noise.

Every contender runs once in each round, in an order that rotates, so that a slow minute hits all of them. The first
contender runs twice in each round under two names; how far its two medians differ is the noise of the measurement, and
ratios closer to one than that mean nothing.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Comparison:
    """Timings by contender, and the relative difference of the first contender's two medians."""

    timings: dict[str, Timing]
    noise: float

    def ratio(self, of: str, to: str) -> float:
        """How many times faster ``to`` is than ``of``."""
        return self.timings[of].median / self.timings[to].median


def interleave(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = 15, warmup: int = 3, seconds: float = 20.0
) -> Comparison:
    """Time the contenders in interleaved rounds, at most about ``seconds`` in all (never fewer than five rounds)."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    names = list(contenders)
    entries = [(name, contenders[name]) for name in names] + [("", contenders[names[0]])]
    samples: dict[str, list[float]] = {name: [] for name, _ in entries}
    for _ in range(warmup):
        for _, call in entries:
            call()
    started = time.perf_counter()
    for index in range(rounds):
        if index >= 5 and time.perf_counter() - started > seconds:
            break
        shift = index % len(entries)
        for name, call in entries[shift:] + entries[:shift]:
            synchronize()
            begin = time.perf_counter()
            call()
            synchronize()
            samples[name].append(1e3 * (time.perf_counter() - begin))
    again = statistics.median(samples.pop(""))
    first = statistics.median(samples[names[0]])
    return Comparison({name: _timing(times) for name, times in samples.items()}, abs(again - first) / first)


def _timing(times: list[float]) -> Timing:
    low, _, high = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), low, high, len(times))
