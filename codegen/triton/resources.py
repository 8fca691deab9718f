"""What Triton kernels need of a GPU, found by compiling them, for GPUs that need not be there.

Kernels are compiled in child processes. LLVM and ptxas may abort or not come to an end, which costs one kernel and not
the caller; Triton compiles nothing in a process that interprets kernels; and a process that imports Triton alone starts
at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from codegen.triton.source import Source
from rewrite.files import cache_directory
from rewrite.target.measurements import Measurements

TENSOR_CORES = ("", "mma", "wgmma", "tcgen05", "mfma")
"""The instructions that a kernel's matrix products may become; none are those of ordinary arithmetic."""

_FORMAT = 1
"""Counted up when the same kernel's figures are read differently."""

_WORKER = Path(__file__).with_name("worker.py")
_START = 60.0
"""Seconds in which a process has imported Triton."""

_SETTINGS = ("TRITON_", "MLIR_", "LLVM_", "AMDGCN_", "PTXAS_", "NVPTX_", "DISABLE_PTXAS_OPT")
"""What a caller's variables begin with that change how Triton compiles, or that it does not."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs.

    Attributes:
        registers: of a thread. On AMD's GPUs with matrix cores, accumulation registers are among them. A kernel that
            spills may have few: ptxas gives 32 to some that spill kilobytes.
        spilled: bytes of a thread that did not find room in registers and lie in local memory. For NVIDIA that is
            neither the frame nor the bytes that spills store, but the smaller one. The frame alone (``STACK`` of
            ``cuobjdump -res-usage``) is not empty for a kernel that prints, or takes the sine of large numbers, and
            spills nothing; the stores alone count a place in memory once for each instruction that writes it. ``LOCAL``
            is always zero. For AMD it is the vector registers that spill, of four bytes each; scalar registers spill
            into vector registers.
        shared: bytes of a program, without the kilobyte that sm_90 and newer take for themselves. It is asked for when
            the kernel is launched, so neither ptxas nor AMD's metadata know of it, and too much is no error of theirs.
        tensor_cores: one of ``TENSOR_CORES``, the newest where there are several.
        tensor_memory: columns of sm_100's tensor memory.
    """

    registers: int
    spilled: int
    shared: int
    tensor_cores: str
    tensor_memory: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a kernel has no resources: it does not compile, or nothing is there that compiles it."""

    reason: str


@dataclass(frozen=True)
class Architecture:
    """A kind of GPU.

    Attributes:
        name: as its maker calls it.
        backend: as Triton calls what compiles for it.
        arch: as that calls it.
        warp: threads that run in step.
        registers: the most that a thread may have.
        shared: the most bytes of shared memory that a program may have.
        tensor_memory: the columns of tensor memory that a program may have.
    """

    name: str
    backend: str
    arch: int | str
    warp: int
    registers: int
    shared: int
    tensor_memory: int = 0


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({found.name: found for found in (
    Architecture("sm_80", "cuda", 80, 32, 255, 163 * 1024),
    Architecture("sm_90", "cuda", 90, 32, 255, 227 * 1024),
    Architecture("sm_100", "cuda", 100, 32, 255, 227 * 1024, 512),
    Architecture("gfx942", "hip", "gfx942", 64, 512, 64 * 1024),
)})  # fmt: skip


def fits(resources: Resources, architecture: Architecture, spill: int = 0) -> str:
    """Why a kernel is not to be taken for a GPU, or nothing where it is.

    Args:
        resources: what it needs.
        architecture: the GPU.
        spill: the bytes of a thread that may spill.
    """
    if resources.shared > architecture.shared:
        needed = f"{math.ceil(resources.shared / 1024)} KB of shared memory"
        return f"needs {needed} and {architecture.shared // 1024} KB are there"
    if resources.tensor_memory > architecture.tensor_memory:
        needed = f"{resources.tensor_memory} columns of tensor memory"
        return f"needs {needed} and {architecture.tensor_memory} are there"
    if resources.spilled > spill:
        return f"spills {resources.spilled} bytes"
    return ""


def triton_version() -> str | Failure:
    """The version of the Triton that is installed."""
    try:
        import triton
    except (ImportError, OSError) as error:
        return Failure(f"there is no Triton: {error}")
    return str(triton.__version__)


class Workers:
    """Processes that compile kernels, started when they are needed; safe for threads, one call at a time.

    What kernels need is kept in the cache that the environment asks for. Failures are not: some would not happen again.

    Args:
        processes: how many at once.
        limit: seconds that a kernel may take.

    Attributes:
        started: how many processes there have been.
    """

    def __init__(self, processes: int = 1, limit: float = 120.0):
        if processes < 1:
            raise ValueError(f"{processes} processes compile nothing")
        self.processes, self.limit = processes, limit
        self.started = 0
        directory = cache_directory()
        self._kept = Measurements(directory and directory / "resources")
        self._workers: list[_Worker] = []
        self._scratch: Path | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and delete what they left; a later call starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.end()
            self._workers = []
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
                self._scratch = None

    def resources(self, sources: Sequence[Source], architecture: Architecture) -> list[Resources | Failure]:
        """What kernels need, in their order.

        A kernel's warps are of 32 threads. Where those of the architecture are of 64, it gets half as many, and at
        least one.

        Args:
            sources: the kernels.
            architecture: the GPU to compile for.
        """
        version = triton_version()
        if isinstance(version, Failure):
            return [version] * len(sources)
        by_key = {_key(source, architecture, version): source for source in sources}
        found: dict[str, Resources | Failure] = {}
        with self._lock:
            for key in by_key:
                known = _from_numbers(self._kept.read(key) or {})
                if known is not None:
                    found[key] = known
            missing = [key for key in by_key if key not in found]
            answers = self._ask([_request(by_key[key], architecture, self.limit) for key in missing], version)
            for key, answer in zip(missing, answers, strict=True):
                found[key] = answer if isinstance(answer, Failure) else Resources(**answer)
                if isinstance(new := found[key], Resources):
                    self._kept.keep(key, _numbers(new))
        return [found[_key(source, architecture, version)] for source in sources]

    def lower(self, sources: Sequence[Source], architecture: Architecture) -> list[str | Failure]:
        """The PTX or, for AMD, the assembly of kernels, in their order.

        Args:
            sources: the kernels.
            architecture: the GPU to compile for.
        """
        version = triton_version()
        if isinstance(version, Failure):
            return [version] * len(sources)
        requests = [_request(source, architecture, self.limit, text=True) for source in sources]
        with self._lock:
            answers = self._ask(requests, version)
        return [answer if isinstance(answer, Failure) else answer["text"] for answer in answers]

    def _ask(self, requests: Sequence[bytes], version: str) -> list[dict[str, Any] | Failure]:
        """Have requests answered, each by a process that is free."""
        waiting = deque(range(len(requests)))
        found: dict[int, dict[str, Any] | Failure] = {}
        try:
            while len(found) < len(requests):
                while waiting and (worker := self._free(version)):
                    worker.take(waiting[0], requests[waiting[0]], self.limit)
                    waiting.popleft()
                busy = [worker for worker in self._workers if worker.job is not None]
                left = min(worker.deadline for worker in busy) - time.monotonic()
                readable = wait([worker.descriptor for worker in busy], max(0.0, left))
                for worker in busy:
                    job, answer = worker.job, worker.answer(worker.descriptor in readable)
                    if job is not None and answer is not None:
                        found[job] = answer
                self._workers = [worker for worker in self._workers if not worker.ended]
        except OSError as error:  # no process can be started, or there is no room for a file
            reason = Failure(f"kernels cannot be compiled: {error}")
            return [found.get(number, reason) for number in range(len(requests))]
        finally:
            for worker in self._workers:  # nobody waits for what they are at
                if worker.job is not None:
                    worker.end()
            self._workers = [worker for worker in self._workers if not worker.ended]
        return [found[number] for number in range(len(requests))]

    def _free(self, version: str) -> _Worker | None:
        """A process that has nothing to do, a new one where there may be more."""
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) == self.processes:
            return None
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="torch_rewrite_"))
        self.started += 1
        self._workers.append(_Worker(self._scratch, version))
        return self._workers[-1]


class _Worker:
    """One process that compiles one kernel after the other.

    Attributes:
        descriptor: what is readable when there is an answer.
        job: the number of the request that it is at.
        deadline: when it is to have answered, or started.
        ended: whether it is gone; another takes its place.
    """

    def __init__(self, scratch: Path, version: str):
        self.job: int | None = None
        self.deadline = time.monotonic() + _START
        self.ended = False
        self._version = version
        self._ready = False
        self._request, self._limit = b"", 0.0
        self._lines = b""
        self._said = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-P", "-W", "ignore", os.fspath(_WORKER)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=_environment(scratch),
                start_new_session=True,  # a group, to be ended with the compilers that it has started
            )
        except OSError:
            self._said.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.descriptor = self._out.fileno()

    def take(self, job: int, request: bytes, limit: float) -> None:
        """Begin with a request, or let it wait until the process has started."""
        self.job, self._request, self._limit = job, request, limit
        if self._ready:
            self._send()

    def answer(self, readable: bool) -> dict[str, Any] | Failure | None:
        """The answer to the request, None while there is none."""
        if not readable:
            if time.monotonic() < self.deadline:
                return None
            what = f"took longer than {self._limit:g} s" if self._ready else f"did not start in {_START:g} s"
            self.end()
            return Failure(f"the compiler {what}")
        data = os.read(self.descriptor, 1 << 16)
        if not data:
            return self._died()
        self._lines += data
        while b"\n" in self._lines:
            line, _, self._lines = self._lines.partition(b"\n")
            answer = json.loads(line)
            if self._ready:
                self.job = None
                return self._failure(answer["failure"]) if "failure" in answer else answer
            if answer.get("triton") != self._version:
                self.end()
                other = f"it finds Triton {answer.get('triton')}, and not {self._version}"
                return Failure(f"the compiler did not start: {answer.get('missing', other)}")
            self._ready = True
            self._send()
        return None

    def end(self) -> None:
        """End the process and what it has started."""
        if self.ended:
            return
        self.ended, self.job = True, None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._in, self._out, self._said):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _send(self) -> None:
        self.deadline = time.monotonic() + self._limit
        self._said.seek(0)  # for the process too, whose file it is
        self._said.truncate()
        with contextlib.suppress(BrokenPipeError):  # it is gone, which the next read tells
            self._in.write(self._request)
            self._in.flush()

    def _died(self) -> Failure:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        said = self._failure("")
        self.end()
        status = self._process.returncode
        how = f"died with signal {-status}" if status < 0 else f"ended with status {status}"
        return Failure(f"the compiler {how}{said.reason}")

    def _failure(self, reason: str) -> Failure:
        """A failure with what the compiler complained of meanwhile, which Triton's errors do not repeat."""
        said = os.pread(self._said.fileno(), 1 << 16, 0).decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if re.search("error|fatal|assert", line, re.IGNORECASE)]
        return Failure(": ".join([reason, *lines[:2]]))


def _environment(scratch: Path) -> dict[str, str]:
    """A process's variables: the caller's, without how that uses Triton, but for where programs are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS) or name in _programs()}
    return {**kept, "TMPDIR": os.fspath(scratch)}


def _programs() -> dict[str, str]:
    """The variables that tell Triton where another ptxas is, or another library."""
    return {name: value for name, value in sorted(os.environ.items()) if re.fullmatch(r"TRITON_\w+_PATH", name)}


def _key(source: Source, architecture: Architecture, version: str) -> str:
    """What the needs of a kernel are kept under: they are the same where this is."""
    target = f"{architecture.backend} {architecture.arch} {architecture.warp}"
    return f"resources {_FORMAT} {source.hash} {target} triton {version} {_programs()}"


def _request(source: Source, architecture: Architecture, limit: float, text: bool = False) -> bytes:
    """A line for a process that compiles."""
    request = {
        "name": f"<torch_rewrite kernel {source.function} {source.hash}>",
        "text": source.text,
        "function": source.function,
        "signature": dict(source.signature),
        "constants": dict(source.constants),
        "target": [architecture.backend, architecture.arch, architecture.warp],
        "options": {"num_warps": max(1, source.warps * 32 // architecture.warp), "num_stages": source.stages},
        "alarm": math.ceil(limit) + 5,
        "text_wanted": text,
    }
    return json.dumps(request).encode() + b"\n"


def _numbers(resources: Resources) -> dict[str, float]:
    """Resources as they are kept."""
    return {**asdict(resources), "tensor_cores": TENSOR_CORES.index(resources.tensor_cores)}


def _from_numbers(numbers: Mapping[str, float]) -> Resources | None:
    """Resources that were kept, None where they are not all there."""
    found = {name: int(number) for name, number in numbers.items()}
    try:
        return Resources(**{**found, "tensor_cores": TENSOR_CORES[found["tensor_cores"]]})  # type: ignore[arg-type]
    except (KeyError, IndexError, TypeError):
        return None
