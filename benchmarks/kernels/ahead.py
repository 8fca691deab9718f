"""Kernels compiled ahead, by several processes, into Triton's cache: whoever launches one later finds it there.

A process that times kernels compiles nothing then. What goes wrong here goes wrong again where the kernel is launched,
and is told there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from codegen.triton.kernel import Launchable

_WORKER = Path(__file__).with_name("ahead_worker.py")

TARGET = ("cuda", 90, 32)
"""A GPU as Triton calls it: what compiles for it, its architecture, the threads of a warp."""


class Ahead:
    """Processes that compile what they are given, until they are told that nothing more comes.

    Args:
        processes: how many; with none nothing is compiled ahead.
        target: the GPU.

    Attributes:
        asked: the kernels that were given, once each.
    """

    def __init__(self, processes: int, target: tuple[str, int, int] = TARGET):
        self._folder = tempfile.TemporaryDirectory(prefix="kernels", ignore_cleanup_errors=True)
        self._at = Path(self._folder.name)
        self.asked: set[str] = set()
        surroundings = {name: said for name, said in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, str(_WORKER), str(self._at), *map(str, target)]
        self._processes = [
            subprocess.Popen(command, env={**surroundings, "CUDA_VISIBLE_DEVICES": ""}, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(processes)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, kernel: Launchable) -> None:
        """Have a kernel compiled, unless it was given before."""
        if kernel.source.hash in self.asked:
            return
        request = {"source": asdict(kernel.source), "samples": kernel.samples, "programs": kernel.programs}
        name = f"{len(self.asked):06}"
        self.asked.add(kernel.source.hash)
        written = self._at / f"{name}.part"
        written.write_text(json.dumps(request))
        written.rename(self._at / f"{name}.json")

    def wait(self, seconds: float) -> int:
        """Wait until all is compiled, or for so long; how many kernels are left."""
        (self._at / "end").touch()
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends and any(process.poll() is None for process in self._processes):
            time.sleep(0.05)
        return len(list(self._at.glob("*.json"))) + sum(process.poll() is None for process in self._processes)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        self._folder.cleanup()
