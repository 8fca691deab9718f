"""Programs that prepare side by side and measure one at a time.

A program tells that it is ``ready`` and waits for a line, and then, when it has measured, a ``row`` or what has
``failed``. While one measures, all others are stopped as a whole: neither their kernels nor their threads disturb it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.kernels.budget import Budget
from benchmarks.kernels.programs import Program

_SETTLES = 0.3
"""Seconds in which a stopped program's last kernels have run."""

_PATIENCE = 60.0
"""Seconds that measuring may take."""


@dataclass
class Turns:
    """Programs by name, of which some run at a time.

    Attributes:
        commands: what is left to start, in order.
        at_once: how many run at a time.
        row: told each row.
        failed: told the name of a program and what went wrong in it.
        environment: of the programs, beside that of this process.
    """

    commands: dict[str, Sequence[str]]
    at_once: int
    row: Callable[[dict[str, Any]], None]
    failed: Callable[[str, str], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    _running: list[Program] = field(default_factory=list)

    def start(self) -> None:
        """Start programs, as many as may run at a time."""
        while self.commands and len(self._running) < self.at_once:
            name = next(iter(self.commands))
            self._running.append(Program(name, self.commands.pop(name), self.environment))

    def pause(self) -> None:
        """Stop all of them as they are."""
        for program in self._running:
            program.signal(signal.SIGSTOP)
        time.sleep(_SETTLES)

    def resume(self) -> None:
        """Let all of them go on."""
        for program in self._running:
            program.signal(signal.SIGCONT)

    def run(self, budget: Budget) -> None:
        """Let programs prepare and measure until there is no program left, or no time."""
        self.resume()
        while budget.left > 0:
            self.start()
            if not self._running:
                return
            for program in list(self._running):
                ended = program.read(0.02)
                self._hear(program)
                if ended:
                    self._end(program)
            waiting = [program for program in self._running if program.ready]
            if waiting:
                self._measure(waiting[0], budget)

    def _measure(self, program: Program, budget: Budget) -> None:
        """Give one program the machine for itself, until it has told something."""
        for other in self._running:
            if other is not program:
                other.signal(signal.SIGSTOP)
        time.sleep(_SETTLES)
        program.ready = False
        try:
            program.write("go")
            ends = time.perf_counter() + min(_PATIENCE, max(budget.left, 0.0))
            ended = heard = False
            while not heard and not ended and time.perf_counter() < ends:
                ended = program.read(0.1)
                heard = self._hear(program)
            if ended:
                self._end(program)
            elif not heard and budget.left > 0:
                program.signal(signal.SIGKILL)  # its end is seen in the next round
        except OSError as error:  # it is gone
            self.failed(program.name, f"it cannot be told to measure: {error}")
        finally:
            self.resume()

    def _hear(self, program: Program) -> bool:
        """Pass on what a program has told; whether it has measured."""
        measured = False
        while program.told:
            said = program.told.pop(0)
            program.ready = program.ready or "ready" in said
            if "row" in said:
                self.row(said["row"])
            if "failed" in said:
                self.failed(program.name, str(said["failed"]))
            measured = measured or "row" in said or "failed" in said
        return measured

    def _end(self, program: Program) -> None:
        self._running.remove(program)
        said = program.last_words()
        if program.process.returncode:
            self.failed(program.name, said)
        program.close()

    def close(self) -> list[str]:
        """End all programs; the names of those that had not come to their end, or had not begun."""
        names = [program.name for program in self._running]
        for program in self._running:
            program.close()
        self._running.clear()
        return [*names, *self.commands]
