"""Programs that measure, in processes of their own: a kernel that brings the driver down ends one of them and no more.

A program writes what it has to say as lines of JSON behind a mark; others that print are not in its way.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

MARK = b"@@ "
"""What lines of the protocol begin with; others are ignored."""


class Program:
    """A program that runs.

    Args:
        name: what it is called.
        command: as for ``subprocess``.
        environment: beside that of this process.

    Attributes:
        told: what it has said and nobody has taken from here.
        ready: for whoever lets programs take turns.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self.name = name
        self.told: list[dict[str, Any]] = []
        self.ready = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the program)
        self._buffer = b""
        surroundings = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                                        env=surroundings)  # fmt: skip

    def read(self, seconds: float) -> bool:
        """Take in what is written within so many seconds; whether the program's output has ended."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        if not select.select([descriptor], [], [], seconds)[0]:
            return False
        found = os.read(descriptor, 1 << 20)
        *lines, self._buffer = (self._buffer + found).split(b"\n")
        for line in lines:
            if line.startswith(MARK):
                with contextlib.suppress(ValueError):
                    self.told.append(json.loads(line.removeprefix(MARK)))
        return not found

    def write(self, text: str) -> None:
        """Write a line to its standard input.

        Raises:
            OSError: it is gone.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal, unless it is gone."""
        with contextlib.suppress(OSError):
            self.process.send_signal(number)

    def last_words(self) -> str:
        """How it has ended: its status, and the end of what it wrote to standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it ended with status {self.process.returncode}: {lines[-1][:300] if lines else 'nothing was said'}"

    def close(self) -> None:
        """End it."""
        self.signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Teller:
    """The program's side: standard output is the protocol's alone, and whoever else prints, prints to errors."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def tell(self, **what: Any) -> None:
        """Say something."""
        self._out.write(MARK + json.dumps(what).encode() + b"\n")
        self._out.flush()

    def wait(self) -> str:
        """A line that is written to the program.

        Raises:
            EOFError: none will be.
        """
        line = sys.stdin.readline()
        if not line:
            raise EOFError("nobody is there any more")
        return line.strip()
