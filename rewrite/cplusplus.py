"""C++ of this project, compiled by the machine's compiler for its processor, once for each version of either."""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rewrite import compat
from rewrite.files import cache_directory, write
from rewrite.target.machine import processor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OPTIONS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno")
_LIBRARIES = ("-ltorch_cpu", "-lc10")


def supported() -> bool:
    """Whether anything may be compiled: on Linux, for an x86 processor, where there is a C++ compiler."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and compat.cpp_compiler() is not None


class Library:
    """A file of C++ and the headers beside it, as a shared library that is kept in the cache.

    Safe for threads, and forgets in a forked process what its parent was about.

    Args:
        source: the file.
        options: of the compiler, beside those that all libraries have.
    """

    def __init__(self, source: Path, options: Callable[[], Sequence[str]] = tuple):
        self._source = source
        self._options = options
        self.reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def reset(self) -> None:
        """Forget what is known of the compiler and the cache."""
        self.lock = threading.RLock()
        self._identity: str | None = None
        self._path: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._built = Path()

    def _after_fork(self) -> None:
        # whoever held the lock is not there to give it back, nor is the compiler this process's child
        self.lock = threading.RLock()
        _scratch.cache_clear()  # the parent removes its own
        if self._process is not None:
            self._path = self._process = None

    def begin(self) -> None:
        """Start to compile, if that is to be done, and go on meanwhile.

        Raises:
            OSError: nothing can be written, or the compiler cannot be run.
            SubprocessError: it does not tell its version.
        """
        with self.lock:
            if self._path is not None:
                return
            path = _directory() / f"{self.identity()}.so"
            if not path.exists():
                self._built = _scratch() / f"{uuid.uuid4().hex}.so"
                with self._built.with_suffix(".txt").open("wb") as said:  # nobody may be there to read a pipe
                    self._process = subprocess.Popen(self._command(self._built), stdout=said, stderr=said)
                _at_exit(self._process.kill)
            self._path = path

    def working(self) -> bool:
        """Whether the compiler is still at work."""
        process = self._process
        return process is not None and process.poll() is None

    def finish(self) -> Path:
        """The library; begins where that was not done.

        Raises:
            OSError: it cannot be put where it is to be, or the compiler cannot be run.
            SubprocessError: the compiler fails.
        """
        with self.lock:
            self.begin()
            assert self._path is not None
            if self._process is not None:
                if self._process.wait(timeout=300):
                    said = self._built.with_suffix(".txt").read_text(errors="replace")
                    raise subprocess.CalledProcessError(self._process.returncode, self._process.args, stderr=said)
                write(self._path, self._built.read_bytes())
                self._process = None
            return self._path

    def load(self, loader: Callable[[Path], object]) -> None:
        """Give the library to what loads it; compile it again where the one that was kept is damaged.

        Raises:
            OSError: it cannot be loaded, or made.
            SubprocessError: the compiler fails.
        """
        with self.lock:
            self.begin()
            kept = self._process is None
            path = self.finish()
            try:
                loader(path)
            except OSError:
                if not kept:
                    raise
                path.unlink()
                self._path = None
                loader(self.finish())

    def identity(self) -> str:
        """A name that differs wherever the library does: by its code, the compiler, torch, the processor.

        Raises:
            OSError, SubprocessError: the compiler does not tell its version.
        """
        if self._identity is None:
            compiler = str(compat.cpp_compiler())
            version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
            sources = [path.read_bytes() for path in (*sorted(self._source.parent.glob("*.h")), self._source)]
            texts = [torch.__version__, sys.version, compiler, version, processor(),
                     torch.backends.cpu.get_cpu_capability(), *_OPTIONS, *self._options()]  # fmt: skip
            self._identity = hashlib.sha256(b"\0".join([*sources, *(text.encode() for text in texts)])).hexdigest()[:24]
        return self._identity

    def _command(self, built: Path) -> list[str]:
        root = Path(torch.__file__).parent
        return [str(compat.cpp_compiler()), *_OPTIONS, f"-I{root / 'include'}", str(self._source), "-o", str(built),
                f"-L{root / 'lib'}", *_LIBRARIES, *self._options()]  # fmt: skip


def _directory() -> Path:
    """Where libraries are kept: in the cache, unless there is none, or nothing can be written there."""
    kept = cache_directory()
    if kept is None:
        return _scratch()
    directory = kept / "native"
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
