"""The kernels' C++, compiled and loaded."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from pathlib import Path

import torch

from codegen.native.soundness import sound
from rewrite.cplusplus import Library, supported
from rewrite.events import emit


def _openmp() -> list[str]:
    """OpenMP, and torch's own library of it, so that there are not two sets of threads."""
    lib = Path(torch.__file__).parent / "lib"
    return ["-fopenmp", *[str(path) for path in sorted(lib.glob("libgomp*.so*"))[:1]]]


LIBRARY = Library(Path(__file__).parent / "operators.cpp", _openmp)

_loaded: bool | None = None


def begin() -> None:
    """Start to compile, if that is to be done, and go on meanwhile."""
    if supported():
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # whoever needs the kernels hears of it
            LIBRARY.begin()


def available() -> bool:
    """Whether the kernels can be called here; compiles and loads them when first asked.

    Where they cannot be compiled, which takes a compiler that knows GCC's vectors, or compute something else than they
    should, other kernels do the work, and an event says so.
    """
    global _loaded
    with LIBRARY.lock:
        if _loaded is None:
            _loaded = supported() and _load()
        return _loaded


def identity() -> str:
    """A name that differs wherever the kernels do; '' where there are none."""
    return LIBRARY.identity() if supported() else ""


def _load() -> bool:
    try:
        LIBRARY.load(lambda path: torch.ops.load_library(str(path)))
        right = sound()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        emit("native-left", f"kernels of our own are left out: {said.strip()[:500]}", logging.INFO)
        return False
    if not right:
        emit("native-left", "kernels of our own are left out: compiled here, they compute something else",
             logging.WARNING)  # fmt: skip
    return right
