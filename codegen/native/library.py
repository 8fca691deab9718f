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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from codegen.native.soundness import sound
from rewrite import compat
from rewrite.cache import default_cache
from rewrite.events import emit
from rewrite.target.machine import processor

_HERE = Path(__file__).parent
_OPTIONS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno")


def supported() -> bool:
    """Whether the machine may have the kernels: Linux, an x86 processor, and a C++ compiler."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and compat.cpp_compiler() is not None


def begin() -> None:
    """Start to compile, if that is to be done, and go on meanwhile."""
    if supported():
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # whoever needs the kernels hears of it
            _compilation()


@cache
def available() -> bool:
    """Whether the kernels can be called here; compiles and loads them when first asked.

    Where they cannot be compiled, which takes a compiler that knows GCC's vectors, other kernels do the work, and an
    event says so.
    """
    if not supported():
        return False
    try:
        torch.ops.load_library(str(_compilation().finish()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        emit("native-left", f"kernels of our own are left out: {said.strip()[:500]}", logging.INFO)
        return False
    if not sound():
        emit("native-left", "kernels of our own are left out: compiled here, they compute something else",
             logging.WARNING)  # fmt: skip
        return False
    return True


@dataclass
class _Compilation:
    """A compiler at work, or done.

    Attributes:
        library: where the library is to be.
        built: where it is made.
        process: None where the library was there.
    """

    library: Path
    built: Path
    process: subprocess.Popen[str] | None

    def finish(self) -> Path:
        """The library.

        Raises:
            OSError: it cannot be put where it is to be.
            SubprocessError: the compiler fails.
        """
        if self.process is not None:
            _, said = self.process.communicate(timeout=300)
            if self.process.returncode:
                raise subprocess.CalledProcessError(self.process.returncode, self.process.args, stderr=said)
            self.process = None
            shutil.move(self.built, self.library.with_suffix(f".{os.getpid()}"))
            os.replace(self.library.with_suffix(f".{os.getpid()}"), self.library)  # others may be at it, too
        return self.library


@cache
def _compilation() -> _Compilation:
    """The compilation of this process.

    Raises:
        OSError: nothing can be written, or the compiler cannot be run.
        SubprocessError: it does not tell its version.
    """
    compiler, scratch = str(compat.cpp_compiler()), _scratch()
    library = _directory() / f"{_identity(compiler)}.so"
    built = scratch / library.name
    if library.exists():
        return _Compilation(library, built, None)
    root = Path(torch.__file__).parent
    command = [compiler, *_OPTIONS, f"-I{root / 'include'}", str(_HERE / "operators.cpp"), "-o", str(built),
               f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", *_openmp(root / "lib")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return _Compilation(library, built, process)


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
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _openmp(lib: Path) -> list[str]:
    """Torch's own OpenMP, so that there are not two sets of threads."""
    return [str(path) for path in sorted(lib.glob("libgomp*.so*"))[:1]]


def _identity(compiler: str) -> str:
    """A name that differs wherever the library would."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    sources = [path.read_bytes() for path in (*sorted(_HERE.glob("*.h")), _HERE / "operators.cpp")]
    texts = [torch.__version__, compiler, version, processor(), torch.backends.cpu.get_cpu_capability(), *_OPTIONS]
    return hashlib.sha256(b"\0".join([*sources, *(text.encode() for text in texts)])).hexdigest()[:24]
