"""The C++ of this package, compiled by the machine's compiler for its processor, once for each version of either."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from codegen.native.soundness import sound
from rewrite import compat
from rewrite.cache import default_cache
from rewrite.events import emit
from rewrite.files import write
from rewrite.target.machine import processor

if TYPE_CHECKING:
    from collections.abc import Callable

_HERE = Path(__file__).parent
_OPTIONS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno")


_LOCK = threading.RLock()


def _forget_lock() -> None:
    """In a forked process: whoever held the lock is not there to give it back."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def supported() -> bool:
    """Whether the machine may have the kernels: Linux, an x86 processor, and a C++ compiler."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and compat.cpp_compiler() is not None


def begin() -> None:
    """Start to compile, if that is to be done, and go on meanwhile."""
    if supported():
        with _LOCK, contextlib.suppress(OSError, subprocess.SubprocessError):  # whoever needs the kernels hears of it
            _compilation()


def available() -> bool:
    """Whether the kernels can be called here; compiles and loads them when first asked.

    Where they cannot be compiled, which takes a compiler that knows GCC's vectors, or compute something else than they
    should, other kernels do the work, and an event says so.
    """
    with _LOCK:
        return supported() and _loaded()


@cache
def _loaded() -> bool:
    try:
        compilation = _compilation()
        try:
            torch.ops.load_library(str(compilation.finish()))
        except OSError:
            if compilation.compiled:
                raise
            compilation.library.unlink()  # it was there, and is damaged
            _compilation.cache_clear()
            torch.ops.load_library(str(_compilation().finish()))
        right = sound()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        emit("native-left", f"kernels of our own are left out: {said.strip()[:500]}", logging.INFO)
        return False
    if not right:
        emit("native-left", "kernels of our own are left out: compiled here, they compute something else",
             logging.WARNING)  # fmt: skip
    return right


@dataclass
class _Compilation:
    """A compiler at work, or done.

    Attributes:
        library: where the library is to be.
        built: where it is made.
        process: None where the library was there, or is by now.
        compiled: whether it was not there.
    """

    library: Path
    built: Path
    process: subprocess.Popen[str] | None
    compiled: bool

    def finish(self) -> Path:
        """The library.

        Raises:
            OSError: it cannot be put where it is to be.
            SubprocessError: the compiler fails.
        """
        if self.process is not None and not self.library.exists():
            _, said = self.process.communicate(timeout=300)
            if self.process.returncode:
                raise subprocess.CalledProcessError(self.process.returncode, self.process.args, stderr=said)
            write(self.library, self.built.read_bytes())
        self.process = None
        return self.library


@cache
def _compilation() -> _Compilation:
    """The compilation of this process.

    Raises:
        OSError: nothing can be written, or the compiler cannot be run.
        SubprocessError: it does not tell its version.
    """
    library = _directory() / f"{identity()}.so"
    built = _scratch() / f"{uuid.uuid4().hex}.so"
    if library.exists():
        return _Compilation(library, built, None, compiled=False)
    root = Path(torch.__file__).parent
    command = [str(compat.cpp_compiler()), *_OPTIONS, f"-I{root / 'include'}", str(_HERE / "operators.cpp"),
               "-o", str(built), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", *_openmp(root / "lib")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _at_exit(process.kill)
    return _Compilation(library, built, process, compiled=True)


def _directory() -> Path:
    """Where libraries are kept: in the cache, unless there is none, or nothing can be written there."""
    kept = default_cache()
    if kept is None:
        return _scratch()
    directory = kept.directory / "native"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _scratch()
    return directory if os.access(directory, os.W_OK) else _scratch()


@cache
def _scratch() -> Path:
    """A directory for this process."""
    made = Path(tempfile.mkdtemp(prefix="torch_rewrite_"))
    _at_exit(lambda: shutil.rmtree(made, ignore_errors=True))
    return made


def _at_exit(do: Callable[[], object]) -> None:
    """Do something when this process ends, and not when those end that it forks."""
    here = os.getpid()
    atexit.register(lambda: do() if os.getpid() == here else None)


def _openmp(lib: Path) -> list[str]:
    """Torch's own OpenMP, so that there are not two sets of threads."""
    return [str(path) for path in sorted(lib.glob("libgomp*.so*"))[:1]]


@cache
def identity() -> str:
    """A name that differs wherever the kernels do: their code, the compiler, torch, the processor; '' without any."""
    if not supported():
        return ""
    compiler = str(compat.cpp_compiler())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    sources = [path.read_bytes() for path in (*sorted(_HERE.glob("*.h")), _HERE / "operators.cpp")]
    texts = [torch.__version__, compiler, version, processor(), torch.backends.cpu.get_cpu_capability(), *_OPTIONS]
    return hashlib.sha256(b"\0".join([*sources, *(text.encode() for text in texts)])).hexdigest()[:24]
