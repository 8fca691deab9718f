"""On a CUDA device: the depthwise kernels beside torch's, and whole networks beside eager and ``torch.compile``.

    python -m benchmarks.gpu [--seconds S] [--kernels S] [--part kernels|networks]

Needs no installation: runs from the repository root with the machine's own torch and timm. Writes
``results/gpu_kernels.json`` and ``results/gpu.json``, anew with each row, and prints both as tables at the end. What
there was no time for is said. All that is measured runs in other processes, which may die.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.kernels import gpu_models, summary
from benchmarks.kernels.ahead import Ahead
from benchmarks.kernels.budget import Budget
from benchmarks.kernels.comparing import CANDIDATES
from benchmarks.kernels.gpu_cases import Case, cases
from benchmarks.kernels.gpu_kernels import CASE
from benchmarks.kernels.measuring import said
from benchmarks.kernels.programs import Program
from benchmarks.kernels.turns import Turns
from codegen.triton import device
from codegen.triton.device import REFERENCE, Device

SECONDS, KERNEL_SECONDS = 470.0, 260.0
"""What there is for all, and until when kernels are measured."""

_AHEAD = 60.0
"""Seconds that are waited for kernels to be compiled, before the first of them is measured."""

_STARTS = 45.0
"""Seconds in which a program is there that measures kernels."""

_RESERVE = 6.0
"""Seconds in which the last tables are written."""


@dataclass
class Record:
    """Rows of one part, on disk as they are there.

    Attributes:
        name: of the file in ``results``.
        rows: as they were measured.
        failures: what went wrong, by case or network.
        skipped: what there was no time for.
        facts: what else is kept.
    """

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.save()

    def fail(self, name: str, reason: str) -> None:
        print(f"{name}: {reason}", flush=True)
        self.failures[name] = f"{self.failures[name]}; {reason}" if name in self.failures else reason
        self.save()

    def save(self) -> Path:
        return harness.save(self.name, self.rows, **self.facts, failures=self.failures, skipped=self.skipped)


def plan_ahead(ahead: Ahead, chosen: Iterable[Case], rates: Device, candidates: int, budget: Budget) -> None:
    """Have kernels compiled, in the order in which they are measured."""
    for case in chosen:
        for last in case.layouts:
            if budget.left < 0:
                return
            try:
                planned = case.setting(last, "cpu", rates).plan()
                for candidate in planned.candidates[:candidates]:
                    ahead.add(candidate.emit().launchable)
            except Exception as error:  # told again where it is measured
                print(f"{case.title(last)}: not compiled ahead: {said(error)}", flush=True)


@dataclass
class Cases:
    """All cases, measured by a program that is started again behind a case that it could not survive.

    Attributes:
        record: what is told.
        names: of the cases.
        command: of the program.
        next: the number of the case that the program is at.
    """

    record: Record
    names: Sequence[str]
    command: Sequence[str]
    next: int = 0
    _program: Program | None = None
    _began: bool = False

    def start(self) -> None:
        """Start the program, which waits until it is told to measure."""
        self._program, self._began = Program("kernels", self.command), False

    def run(self, budget: Budget) -> None:
        """Measure as long as there is time."""
        while self.next < len(self.names) and budget.left > 5.0:
            if self._program is None:
                self.start()
            reason = self._measured(budget)
            self.close()
            if not reason:
                break
            if not self._began:
                self.record.fail("all cases", reason)
                break
            self.record.fail(self.names[self.next], reason)
            self.next += 1
        self.close()
        self.record.skipped = list(self.names[self.next :])
        self.record.facts["predictions"] = summary.predictions(self.record.rows)
        self.record.facts["groups"] = summary.groups(self.record.rows)
        self.record.save()

    def close(self) -> None:
        """End the program."""
        if self._program is not None:
            self._program.close()
            self._program = None

    def _measured(self, budget: Budget) -> str:
        """Let the program measure; how it has died, or nothing where it has come to its end or there is no time."""
        program = self._program
        assert program is not None
        try:
            program.write(f"{self.next} {budget.left:.1f}")
        except OSError:
            return program.last_words()
        heard, patience = time.perf_counter(), _STARTS
        while budget.left > -1.0:
            ended = program.read(0.2)
            if program.told:
                heard, patience = time.perf_counter(), CASE + 10.0
            while program.told:
                self._take(program.told.pop(0))
            if ended:
                words = program.last_words()
                return words if program.process.returncode else ""
            if time.perf_counter() - heard > patience:
                return f"nothing was heard for {patience:.0f} s"
        return ""

    def _take(self, said: dict[str, Any]) -> None:
        if "rate" in said:
            self.record.facts["copy_bytes_per_second"] = said["rate"]
            print(f"a copy of 1 GiB moves {said['rate'] / 1e12:.2f} TB/s", flush=True)
        if "begin" in said:
            self.next, self._began = said["begin"], True
        if "failed" in said:
            self.record.fail(self.names[self.next], said["failed"])
        for row in said.get("rows", ()):
            self.record.add(row)
            print(summary.table([row]).splitlines()[-1], flush=True)


def networks(record: Record, lock: str, at_once: int) -> Turns:
    """A program for each network, those that compile for minutes last."""
    command = [sys.executable, "-m", "benchmarks.kernels.gpu_models", lock]
    commands = {name: [*command, name, *map(str, gpu_models.BATCHES)] for name in gpu_models.MODELS}
    for name in gpu_models.MODELS[:2]:  # if there is any time left
        slowly = [name, str(gpu_models.BATCHES[0]), gpu_models.AUTOTUNED]
        commands[" ".join([name, gpu_models.AUTOTUNED])] = [*command, *slowly]

    def add(row: dict[str, Any]) -> None:
        record.add(row)
        print(gpu_models.table([row]).splitlines()[-1], flush=True)

    surroundings = {"TORCHINDUCTOR_COMPILE_THREADS": "3", "OMP_NUM_THREADS": "2"}
    return Turns(commands, at_once, add, record.fail, surroundings)


def _kernels(record: Record, budget: Budget, turns: Turns | None, processes: int) -> None:
    """The part of the kernels; the networks' programs begin meanwhile, and stand still while kernels are measured."""
    on = torch.device("cuda", torch.cuda.current_device())
    rates = device.of(on) or REFERENCE
    major, minor = torch.cuda.get_device_capability(on)
    chosen = cases()
    names = [f"{case.name} b{case.batch}" for case in chosen]
    measured = Cases(record, names, [sys.executable, "-m", "benchmarks.kernels.gpu_kernels"])
    with Ahead(processes, ("cuda", 10 * major + minor, 32)) as ahead:
        measured.start()
        if turns is not None:
            turns.start()
        plan_ahead(ahead, chosen, rates, CANDIDATES, budget.until(_AHEAD))
        left = ahead.wait(min(_AHEAD, budget.left / 2) - budget.spent)
        print(f"{len(ahead.asked)} kernels asked for, {left} not compiled after {budget.spent:.0f} s", flush=True)
        record.facts.update(ahead_seconds=round(budget.spent, 1), kernels=len(ahead.asked), rates=rates.name)
        if turns is not None:
            turns.pause()
        measured.run(budget)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Kernels and networks on a GPU.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all (%(default)s)")
    parser.add_argument("--kernels", type=float, default=KERNEL_SECONDS, help="until when kernels run (%(default)s)")
    parser.add_argument("--part", choices=("kernels", "networks"), help="one part alone, with all of the time")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, save; the exit status says whether everything ran that there was time for."""
    arguments = _arguments(given)
    if not torch.cuda.is_available():
        print("there is no CUDA device here; benchmarks.gpu measures nothing")
        return 1
    budget = Budget(arguments.seconds)
    kernels, models = Record("gpu_kernels"), Record("gpu")
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        turns = networks(models, str(Path(folder, "lock")), max(1, min(5, cores // 3)))
        try:
            if arguments.part != "networks":
                both = arguments.part is None
                until = budget.until(arguments.kernels if both else budget.seconds - _RESERVE)
                _kernels(kernels, until, turns if both else None, max(1, min(12, cores - 4)))
            if arguments.part != "kernels":
                turns.run(budget.until(budget.seconds - _RESERVE))
        except Exception as error:  # the tables of what there is are printed whatever happens
            kernels.fail("benchmarks.gpu", said(error))
        finally:
            left = turns.close()
    models.skipped = [] if arguments.part == "kernels" else left
    _print(kernels, models)
    return min(len(kernels.failures) + len(models.failures), 1)


def _print(kernels: Record, models: Record) -> None:
    """Both tables, and the shortest figures last."""
    for record, made in ((kernels, summary.short), (models, gpu_models.table)):
        if record.rows:
            print(f"\n{record.save()}\n{made(record.rows)}")
        if record.skipped:
            print(f"left out for want of time: {', '.join(record.skipped)}"[:1500])
        for name, reason in list(record.failures.items())[:12]:
            print(f"failed: {name}: {reason}"[:200])
    if kernels.rows:
        print(f"\n{summary.closing(kernels.rows)}")


if __name__ == "__main__":
    sys.exit(main())
