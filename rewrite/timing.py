"""Timing that survives a shared machine: interleaved rounds, medians, and an A/A pair that shows the noise.

Every contender runs once in each round, in an order that changes, so that a slow minute hits all of them. The first
contender runs twice in each round under two names; how far its two medians differ is the noise of the measurement, and
ratios closer to one than that mean nothing.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


HOPELESS = 3.0
"""What takes so many times longer than the fastest contender is not timed in earnest: it would disturb that one."""
TOLERANCE = 0.1
"""How far the fastest contender may differ from itself in a round that counts, relatively."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Comparison:
    """Timings by contender, and the relative difference of one contender from itself."""

    timings: dict[str, Timing]
    noise: float

    def ratio(self, of: str, to: str) -> float:
        """How many times faster ``to`` is than ``of``."""
        return self.timings[of].median / self.timings[to].median


def interleave(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = 15, warmup: int = 3, seconds: float = 20.0
) -> Comparison:
    """Time the contenders in interleaved rounds, at most about ``seconds`` in all (never fewer than five rounds)."""
    names = list(contenders)
    entries = [(name, contenders[name]) for name in names] + [("", contenders[names[0]])]
    samples: dict[str, list[float]] = {name: [] for name, _ in entries}
    for _ in range(warmup):
        for _, call in entries:
            call()
    shuffled = random.Random(0)
    started = time.perf_counter()
    for index in range(rounds):
        if index >= 5 and time.perf_counter() - started > seconds:
            break
        # what runs before a contender leaves caches and threads as they are, so nobody has the same one always
        for name, call in shuffled.sample(entries, len(entries)):
            _synchronize()
            begin = time.perf_counter()
            call()
            _synchronize()
            samples[name].append(1e3 * (time.perf_counter() - begin))
    again = statistics.median(samples.pop(""))
    first = statistics.median(samples[names[0]])
    return Comparison({name: _timing(times) for name, times in samples.items()}, abs(again - first) / first)


def settled(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int = 7,
    seconds: float = 2.0,
    tolerance: float = TOLERANCE,
    least: float = 5e-4,
    hopeless: float = math.inf,
) -> Comparison | None:
    """Time the contenders where the machine is quiet enough; None where it is not.

    In every round the fastest contender runs at the beginning and at the end. A round in which its two times differ by
    more than ``tolerance`` is discarded: something else was running.

    Args:
        contenders: calls by name. Short ones are repeated, so that each sample takes ``least`` seconds or more.
        rounds: how many rounds are kept at most.
        seconds: about how long all of it may take, the first runs excepted.
        tolerance: relative to the shorter of the two times.
        least: in seconds.
        hopeless: a contender that takes so many times longer than the fastest one, three times, is not run again.

    Returns:
        Timings of the rounds that were kept, and the median difference of the fastest contender from itself as noise.
        None with fewer than three of them.
    """
    once = {name: second_run(call) for name, call in contenders.items()}
    for name, call in contenders.items():
        if once[name] > hopeless * min(once.values()):  # or something else was running
            once[name] = min(once[name], _timed(call), _timed(call))
    names = sorted(once, key=once.__getitem__)
    calls = [(name, contenders[name], max(1, math.ceil(least / once[name])))
             for name in names if once[name] <= hopeless * once[names[0]]]  # fmt: skip
    samples: dict[str, list[float]] = {name: [] for name, _, _ in calls}
    spreads: list[float] = []
    started = time.perf_counter()
    for index in range(4 * rounds):
        if len(spreads) == rounds or (index >= 3 and time.perf_counter() - started > seconds):
            break
        shift = index % len(calls)
        begin = _sample(calls[0])
        found = {entry[0]: _sample(entry) for entry in calls[1:][shift:] + calls[1:][:shift]}
        end = _sample(calls[0])
        spread = abs(end - begin) / min(begin, end)
        if spread <= tolerance:
            spreads.append(spread)
            for name, taken in {calls[0][0]: (begin + end) / 2, **found}.items():
                samples[name].append(taken)
    if len(spreads) < 3:
        return None
    timings = {name: _timing(samples[name]) if name in samples else _timing([1e3 * once[name]] * 2)
               for name in contenders}  # fmt: skip
    return Comparison(timings, statistics.median(spreads))


def second_run(call: Callable[[], Any]) -> float:
    """Seconds that a call takes when it has run once."""
    call()
    return _timed(call)


def _timed(call: Callable[[], Any]) -> float:
    _synchronize()
    begin = time.perf_counter()
    call()
    _synchronize()
    return max(time.perf_counter() - begin, 1e-9)


def _sample(entry: tuple[str, Callable[[], Any], int]) -> float:
    """Milliseconds of one call."""
    _, call, repeats = entry
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize()
    return 1e3 * (time.perf_counter() - begin) / repeats


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timing(times: list[float]) -> Timing:
    low, _, high = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), low, high, len(times))
