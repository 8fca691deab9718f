"""All rows, within a limit of time: a process for each model, so that no crash and no memory of one reaches another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.inference.ours import Tuned

LEAST = 60.0
"""No model is begun with fewer seconds left."""

LONGEST = 480.0
"""Seconds that one model may take, so that the others are measured too."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Rows of one model to measure."""

    model: str
    batches: tuple[int, ...]

    def skipped(self, reason: str, done: Iterable[Row] = ()) -> list[Row]:
        """What is said of the rows that are not there."""
        there = {row["batch"] for row in done}
        return [{"model": self.model, "batch": n, "reason": reason} for n in self.batches if n not in there]


Command = Callable[[Task, Path], Sequence[str]]


def command(tuned: Tuned) -> Command:
    """What measures one task and writes its rows to a file."""

    def arguments(task: Task, file: Path) -> Sequence[str]:
        batches = [str(batch) for batch in task.batches]
        return [sys.executable, "-m", "benchmarks.inference.measuring", task.model, str(file), tuned, *batches]

    return arguments


def run(
    tasks: Sequence[Task],
    seconds: float,
    command: Command,
    measured: Callable[[Row], None],
    skipped: Callable[[Row], None],
) -> None:
    """Measure the rows of all tasks, one after the other.

    Args:
        tasks: what to measure.
        seconds: when they have passed, what is left is skipped.
        command: measures one task.
        measured: gets each row as soon as it is there.
        skipped: gets model, batch and reason of each row that will not be there.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as caches:
        # what earlier runs have cached or chosen must not count; within a model programs are found again
        environment = {**os.environ, "TORCH_REWRITE_CACHE_DIR": caches, "TORCH_REWRITE_CACHE": "1"}
        environment.pop("TORCH_REWRITE_TUNE", None)
        for task in tasks:
            left = seconds - (time.perf_counter() - started)
            rows: list[Row] = []
            reason = f"the limit of {seconds:.0f} s was reached"
            if left >= min(LEAST, seconds / 2):
                rows, failure = _one(task, min(left, LONGEST), command, environment, measured)
                if failure is not None:
                    reason = failure
                elif left >= LONGEST:
                    reason = f"it took over {LONGEST:.0f} s"
            for row in task.skipped(reason, rows):
                skipped(row)


def _one(
    task: Task, seconds: float, command: Command, environment: dict[str, str], measured: Callable[[Row], None]
) -> tuple[list[Row], str | None]:
    """The rows of one model, and why there are no more; None where time is why."""
    rows: list[Row] = []

    def read(file: Path) -> None:
        text = file.read_text() if file.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines()[len(rows) :]:
            rows.append(json.loads(line))
            measured(rows[-1])

    with tempfile.TemporaryDirectory() as folder:
        file, said = Path(folder) / "rows.jsonl", Path(folder) / "said"
        with said.open("w") as output:
            process = subprocess.Popen(command(task, file), env=environment, stdout=output, stderr=subprocess.STDOUT)
            code = _wait(process, seconds, lambda: read(file))
        read(file)
        if code is None:
            return rows, None
        lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return rows, f"its process ended with {code}: {lines[-1][:300] if lines else 'it said nothing'}"


def _wait(process: subprocess.Popen[bytes], seconds: float, look: Callable[[], None]) -> int | None:
    """The exit code of a process, None where it was stopped after so many seconds."""
    until = time.perf_counter() + seconds
    try:
        while time.perf_counter() < until:
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                look()
        return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
