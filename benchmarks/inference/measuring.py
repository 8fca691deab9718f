"""One row: contenders prepared, compared with float64, and timed in turns in one process.

    python -m benchmarks.inference.measuring NAME FILE auto|each BATCH ...

appends the rows of one model to a file, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from benchmarks.inference.models import BY_NAME
from benchmarks.inference.ours import Ours, Tuned
from benchmarks.inference.peers import peers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from benchmarks.inference.contender import Call, Contender
    from benchmarks.inference.models import Network

SECONDS = 4.5
ROUNDS = 60

TOLERANCE = 1e-3
"""A contender that is further from float64, relatively to the largest value, computes something else."""

HOPELESS, PATIENCE = 6.0, 0.5
"""What takes so many times longer than the fastest, and so many seconds, is timed once: rounds are for what may win."""


SLOW = 2.0
"""Where the first call took so many seconds, a second one would take no other time."""


@dataclass
class _Ready:
    """A contender that runs, and the seconds of one call."""

    contender: Contender
    call: Call
    facts: dict[str, Any]
    once: float


def measure(
    network: str, contenders: Sequence[Contender], x: Tensor, truth: Tensor, *, seconds: float = SECONDS,
    rounds: int = ROUNDS,
) -> dict[str, Any]:  # fmt: skip
    """The row of these contenders.

    Args:
        network: its name.
        contenders: those that fail to compile or to run, or give something else, are recorded, and not timed.
        x: the argument of the calls.
        truth: what they should give.
        seconds: about how long the timing may take.
        rounds: at most.
    """
    ready, failures = [], {}
    with torch.no_grad():
        for contender in contenders:
            try:
                ready.append(_prepared(contender, truth))
            except Exception as error:  # others' compilers raise anything
                failures[contender.name] = _reason(error)
        for entry in ready:
            if entry.once < SLOW:
                entry.once = _seconds(entry.call)
        timed = _timings(ready, seconds, rounds)
    return {
        "model": network,
        "batch": len(x),
        "contenders": {entry.contender.name: {**entry.facts, **timed[entry.contender.name]} for entry in ready},
        "failures": failures,
        "date": time.strftime("%Y-%m-%d"),
    }


def _prepared(contender: Contender, truth: Tensor) -> _Ready:
    """The contender, compiled and compared.

    Raises:
        ValueError: its result is wrong.
        Exception: whatever its compiler raises.
    """
    started = time.perf_counter()
    call = contender.prepare()
    ready = time.perf_counter()
    found = call().double()
    done = time.perf_counter()
    if found.shape != truth.shape:
        raise ValueError(f"its result has the shape {tuple(found.shape)} and not {tuple(truth.shape)}")
    error = float((found - truth).abs().max() / truth.abs().max())
    if not error <= TOLERANCE:
        raise ValueError(f"its result differs from float64 by {error:.2g} of the largest value")
    facts = {
        "ours": contender.ours, "runtime": contender.runtime, "variant": contender.variant, "error": error,
        "prepared_seconds": round(ready - started, 2),
    }  # fmt: skip
    return _Ready(contender, call, facts, done - ready)


def _reason(error: BaseException) -> str:
    """The error behind an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def _seconds(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _timings(ready: Sequence[_Ready], seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds, spread and rounds by contender.

    Each runs twice in every round, and its spread is how far the two medians differ. Where that takes too long, only
    the fastest does, whose spread then stands for all.
    """
    if not ready:
        return {}
    ordered = sorted(ready, key=lambda entry: entry.once)
    limit = max(HOPELESS * ordered[0].once, PATIENCE)
    often = {entry.contender.name: entry.call for entry in ordered if entry.once <= limit}
    total = sum(entry.once for entry in ordered if entry.once <= limit)
    twice = 12 * total <= seconds
    again = {f"{name} again": call for name, call in often.items()} if twice else {}
    compared = harness.interleave({**often, **again}, rounds, warmup=1, seconds=seconds)
    found = {}
    for entry in ordered:
        name = entry.contender.name
        if name not in often:
            found[name] = {"median": round(1e3 * entry.once, 4), "spread": None, "rounds": 1}
            continue
        runs = [compared.timings[key] for key in (name, f"{name} again") if key in compared.timings]
        median = statistics.fmean(run.median for run in runs)
        spread = compared.noise if len(runs) == 1 else abs(runs[0].median - runs[1].median) / median
        found[name] = {
            "median": round(median, 4), "low": round(min(run.low for run in runs), 4),
            "high": round(max(run.high for run in runs), 4), "spread": round(spread, 4),
            "rounds": sum(run.rounds for run in runs),
        }  # fmt: skip
    return found


def rows(
    network: Network, batches: Sequence[int], tuned: Tuned = "auto", *, seconds: float = SECONDS, rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """The rows of one model."""
    model = network.make()
    ours = Ours(model, tuned)
    for batch in batches:
        started = time.perf_counter()
        torch.compiler.reset()  # what was compiled for another batch is in the way of the guards
        x = network.draw(model, batch)
        with tempfile.TemporaryDirectory() as folder:
            contenders = [*peers(model, x, Path(folder), network.merge), *ours.contenders(x)]
            row = measure(network.name, contenders, x, network.truth(model, x), seconds=seconds, rounds=rounds)
        for name, program in ours.programs.items():
            if name in row["contenders"]:
                row["contenders"][name]["program"] = program
        yield {**row, "kind": network.kind, "seconds": round(time.perf_counter() - started, 1)}


def main(name: str, file: str, tuned: Tuned, batches: Sequence[int]) -> None:
    """Measure one model, and append each row as it is there."""
    for row in rows(BY_NAME[name], batches, tuned):
        with Path(file).open("a") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], sys.argv[2], sys.argv[3], [int(n) for n in sys.argv[4:]])  # type: ignore[arg-type]
