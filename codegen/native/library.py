"""The C++ of this package, compiled by the machine's compiler for its processor, once for each version of either."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

import codegen.native.operators  # noqa: F401 the schemas, before what implements them
from rewrite import compat
from rewrite.cache import default_cache
from rewrite.events import emit
from rewrite.target.machine import facts

_HERE = Path(__file__).parent
_OPTIONS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno")


def supported() -> bool:
    """Whether the machine may have the kernels: Linux, an x86 processor, and a C++ compiler."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and compat.cpp_compiler() is not None


@cache
def available() -> bool:
    """Whether the kernels can be called here; compiles and loads them when first asked.

    Where they cannot be compiled, which takes a compiler that knows GCC's vectors, other kernels do the work, and an
    event says so.
    """
    if not supported():
        return False
    compiler = str(compat.cpp_compiler())
    try:
        torch.ops.load_library(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        emit("native-left", f"kernels of our own are left out: {compiler} says {said.strip()[:500]}", logging.INFO,
             compiler=compiler)  # fmt: skip
        return False
    return True


def _compiled(compiler: str) -> Path:
    """The library, in the cache where there is one.

    Raises:
        OSError: nothing can be written.
        SubprocessError: the compiler fails.
    """
    kept = default_cache()
    if kept is None:
        directory = _scratch()
    else:
        directory = kept.directory / "native"
        directory.mkdir(parents=True, exist_ok=True)
    made = directory / f"{_identity(compiler)}.so"
    if made.exists():
        return made
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        built = Path(scratch) / made.name
        command = [compiler, *_OPTIONS, f"-I{root / 'include'}", str(_HERE / "operators.cpp"), "-o", str(built),
                   f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", *_openmp(root / "lib")]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(built, made)  # another process may be at it, too
    return made


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
    machine = repr(sorted(facts(torch.device("cpu")).items()))
    texts = [torch.__version__, compiler, version, machine, *_OPTIONS]
    return hashlib.sha256(b"\0".join([*sources, *(text.encode() for text in texts)])).hexdigest()[:24]
