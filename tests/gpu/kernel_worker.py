"""Kernels checked in a process of its own: one that reads where it may not costs this process and no other test.

    python -m tests.gpu.kernel_worker MODULE:FUNCTION DEVICE

where the function gives named settings for a device and its rates. Each line that comes in is the number of one.
"""

from __future__ import annotations

import importlib
import math
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.bound import Setting
from benchmarks.kernels.gpu_kernels import BROKEN, is_alive
from benchmarks.kernels.programs import Program, Teller
from codegen.triton import device, launching
from codegen.triton.device import REFERENCE
from tests.gpu.kernel_cases import check

_ROOT = Path(__file__).parents[2]


def poisoned(given: Any) -> Any:
    """Memory for results without a number in it."""

    def empty(results: Sequence[Any], on: torch.device) -> list[Tensor]:
        return [memory.fill_(math.nan) for memory in given(results, on)]

    return empty


def main(where: str, name: str) -> int:
    """Check what is asked for; the exit status."""
    teller = Teller()
    module, function = where.split(":")
    rates = device.of(torch.device(name, 0)) if name == "cuda" else None
    settings: list[tuple[str, Setting]] = getattr(importlib.import_module(module), function)(name, rates or REFERENCE)
    launching.empty = poisoned(launching.empty)
    warnings.filterwarnings("error", ".* torch's own operators run instead", RuntimeWarning)
    while True:
        try:
            number = int(teller.wait())
        except EOFError:
            return 0
        said: dict[str, Any] = {}
        try:
            said["ran"] = check(settings[number][1])
        except Exception:
            said["failed"] = traceback.format_exc(limit=-4)[-3000:]
        alive = name != "cuda" or is_alive()
        teller.tell(**said, alive=alive)
        if not alive:
            return BROKEN


class Checker:
    """The other side: a process that is started when it is needed, and again when it has ended.

    Args:
        where: ``"module:function"``.
        device: of the settings.
    """

    def __init__(self, where: str, device: str):
        self._command = [sys.executable, "-m", "tests.gpu.kernel_worker", where, device]
        self._program: Program | None = None

    def check(self, number: int, seconds: float = 60.0) -> list[str]:
        """The schedules of a setting that were right.

        Raises:
            AssertionError: one was wrong, or did not run, or took the process with it.
        """
        if self._program is None:
            self._program = Program("kernels", self._command, {"PYTHONPATH": str(_ROOT)})
        program = self._program
        try:
            program.write(str(number))
        except OSError:
            raise AssertionError(self._ended()) from None
        waited = 0.0
        while not program.told and waited < seconds:
            if program.read(0.5):
                raise AssertionError(self._ended())
            waited += 0.0 if program.told else 0.5
        if not program.told:
            self.close()
            raise AssertionError(f"nothing came back within {seconds:.0f} s")
        said = program.told.pop(0)
        if not said["alive"]:
            self.close()
            said.setdefault("failed", "the kernels have left the GPU in an error")
        if "failed" in said:
            raise AssertionError(said["failed"])
        return list(said["ran"])

    def _ended(self) -> str:
        assert self._program is not None
        words = self._program.last_words()
        self.close()
        return words

    def close(self) -> None:
        """End the process."""
        if self._program is not None:
            self._program.close()
            self._program = None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
