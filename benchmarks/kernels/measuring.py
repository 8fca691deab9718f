"""Times of kernels on a GPU, without what it takes to launch them: from CUDA graphs, with warm and with cold caches.

With warm caches a graph of several calls is replayed, one behind the other. With cold ones something larger than the
second cache is written between calls, and what a graph of these writes alone takes is subtracted. Contenders take
turns, and of the rounds the medians count.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], Any]

_FLUSHED = 256 * 2**20
"""Bytes that are written between calls: several times the second cache of any GPU."""

_WAIT = 200_000
"""Cycles in which a replay and two events are launched."""

_SAMPLE = 300e-6
"""Seconds that a sample takes at least."""

_MOST = 50
_COLD = 4
"""Calls in one graph, with warm caches and with cold ones."""

ROUNDS = 15
_LEAST = 3

_HOPELESS = 8.0
"""What takes so many times longer than the fastest contender is timed in the first rounds alone."""


class Clock(Protocol):
    """Records calls, and times what was recorded."""

    def begin(self) -> None:
        """Forget what was recorded before; nobody replays it any more."""
        ...

    def record(self, call: Call, repeats: int, cold: bool) -> Call:
        """A function that replays so many runs of a call; with ``cold`` each run begins with cold caches.

        Raises:
            RuntimeError: the call cannot be recorded.
        """
        ...

    def seconds(self, replay: Call) -> float:
        """What a replay takes on the device."""
        ...


class Graphs:
    """CUDA graphs and events on the current device.

    Graphs that are timed together share a pool of memory, since nobody reads what they compute.
    """

    def __init__(self) -> None:
        self._flushed = torch.empty(_FLUSHED // 4, dtype=torch.float32, device="cuda")
        self.begin()

    def begin(self) -> None:
        """As :class:`Clock`: take another pool of memory."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, call: Call, repeats: int, cold: bool) -> Call:
        """As :class:`Clock`: the call runs once or twice before, on another stream, as recording asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                for _ in range(repeats):
                    if cold:
                        self._flushed.fill_(1.0)
                    call()
        except Exception:
            self.begin()  # a pool that something failed in may be of no use
            raise
        return graph.replay

    def seconds(self, replay: Call) -> float:
        """By events around the replay, all of which the device gets while it still waits."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_WAIT)
        start.record()
        replay()
        end.record()
        end.synchronize()
        return 1e-3 * float(start.elapsed_time(end))


@dataclass(frozen=True)
class Times:
    """Seconds of one call, medians.

    Attributes:
        warm: where the calls before have left its operands in the caches.
        cold: where the caches hold something else.
    """

    warm: float
    cold: float


@dataclass(frozen=True)
class Measurement:
    """What was measured together.

    Attributes:
        times: by contender.
        failures: why others have none, by contender.
        noise: the relative difference of two medians of the first contender, with cold caches.
    """

    times: Mapping[str, Times]
    failures: Mapping[str, str]
    noise: float


@dataclass(frozen=True)
class _Recorded:
    """A contender's graphs, the calls in the first of them, and the seconds of one call as it ran first."""

    warm: Call
    cold: Call
    repeats: int
    once: float


def measure(contenders: Mapping[str, Call], clock: Clock, seconds: float = 2.0, rounds: int = ROUNDS) -> Measurement:
    """Time contenders in turns.

    Args:
        contenders: calls by name; those that cannot be recorded are left out.
        clock: of the device.
        seconds: about how long the rounds may take; there are never fewer than three.
        rounds: at most.
    """
    recorded: dict[str, _Recorded] = {}
    failures: dict[str, str] = {}
    clock.begin()
    for name, call in contenders.items():
        try:
            recorded[name] = _recorded(call, clock)
        except Exception as error:  # libraries fail in ways of their own, and the others can still be timed
            failures[name] = said(error)
    if not recorded:
        return Measurement({}, failures, math.nan)
    flush = clock.record(nothing, _COLD, True)
    entries = [*recorded.items(), ("", next(iter(recorded.values())))]
    warm: dict[str, list[float]] = {name: [] for name, _ in entries}
    cold: dict[str, list[float]] = {name: [] for name, _ in entries}
    ends = time.perf_counter() + seconds
    limit = _HOPELESS * min(each.once for each in recorded.values())
    for number in range(rounds):
        if number >= _LEAST and time.perf_counter() > ends:
            break
        shift = number % len(entries)
        alone = clock.seconds(flush)
        for name, each in entries[shift:] + entries[:shift]:
            if number >= _LEAST and each.once > limit:
                continue
            warm[name].append(clock.seconds(each.warm) / each.repeats)
            cold[name].append((clock.seconds(each.cold) - alone) / _COLD)
    times = {name: Times(statistics.median(warm[name]), statistics.median(cold[name])) for name, _ in entries}
    again, first = times.pop(""), next(iter(times.values()))
    return Measurement(times, failures, abs(again.cold - first.cold) / max(abs(first.cold), 1e-9))


def nothing() -> None:
    """The call that is no call."""


def _recorded(call: Call, clock: Clock) -> _Recorded:
    """A call with warm and with cold caches, repeated as often as a sample needs."""
    cold = clock.record(call, _COLD, True)
    once = clock.record(call, 1, False)
    clock.seconds(once)
    taken = max(clock.seconds(once), 1e-9)
    repeats = max(1, min(_MOST, math.ceil(_SAMPLE / taken)))
    return _Recorded(once if repeats == 1 else clock.record(call, repeats, False), cold, repeats, taken)


def copy_rate(clock: Clock, device: str, size: int = 2**30) -> float:
    """Bytes per second that a plain copy of so many bytes reads and writes together."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    into = torch.empty_like(source)
    found = measure({"copy": lambda: into.copy_(source)}, clock, rounds=9)
    return 2 * size / found.times["copy"].warm


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
