"""Mutants against tests: a fresh process for a set of modules, and what it tells."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rewrite.errors import InputError, RewriteError
from rewrite.testing.mutation.mutants import Mutant, Source
from rewrite.testing.mutation.outcome import Baseline, Fate, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class MutationError(RewriteError):
    """The evidence cannot be run: the tests fail to be collected, or their process dies."""


def source_of(module: str) -> Source:
    """The source of a module, which is not imported.

    Raises:
        InputError: there is no such module, or it has no source.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"module '{module}' has no source that is found; run from the root of its repository")
    return Source(module, spec.origin, Path(spec.origin).read_text())


def mutants_of(modules: Iterable[str]) -> list[Mutant]:
    """Every mutant of the functions of some modules, in a fixed order."""
    return [mutant for module in modules for mutant in source_of(module).mutants()]


def examine(
    mutants: Sequence[Mutant],
    tests: Sequence[str],
    options: Sequence[str] = (),
    root: str | Path = ".",
    grace: float = 5.0,
) -> Iterator[Baseline | Outcome]:
    """What tests make of mutants: first of the rules as they are, then of one mutant after the other.

    Each mutant is one change of one function, made in memory; of the tests those are run that come to the changed
    statement, until one fails. Closing the iterator ends the process that runs them.

    Args:
        mutants: from :func:`mutants_of`.
        tests: files or directories, or single tests, as pytest takes them.
        options: further arguments of pytest, ``["-m", "not slow"]``.
        root: the directory to run pytest in.
        grace: seconds of processor time that a test may take with a mutant beyond ten times its own.

    Raises:
        InputError: a module has no source.
        MutationError: the tests cannot be run.
    """
    sources = [source_of(module) for module in dict.fromkeys(mutant.module for mutant in mutants)]
    with tempfile.TemporaryDirectory() as directory:
        job = {
            "sources": [asdict(source) for source in sources],
            "mutants": [mutant.key for mutant in mutants],
            "tests": [*tests],
            "options": [*options],
            "grace": grace,
            "scratch": str(Path(directory) / "tests"),
        }
        yield from _told(json.dumps(job), Path(directory), root)


def _told(job: str, directory: Path, root: str | Path) -> Iterator[Baseline | Outcome]:
    reading, writing = os.pipe()
    # a forked process has no other threads than the one that forked it, so there must be none
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": os.pathsep.join(sys.path)}
    with (directory / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "rewrite.testing.mutation.worker", str(writing)],
            stdin=subprocess.PIPE, stdout=errors, stderr=errors, text=True, pass_fds=(writing,), cwd=root,
            env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        assert process.stdin is not None
        try:
            with process.stdin as given, os.fdopen(reading) as lines:
                given.write(job)
                given.close()
                yield from map(_read, lines)
            if process.wait():
                errors.seek(0)
                raise MutationError(f"the tests do not run: {errors.read()[-2000:]}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(line: str) -> Baseline | Outcome:
    said = json.loads(line)
    if "error" in said:
        raise MutationError(said["error"])
    if "baseline" in said:
        return Baseline(**{**said["baseline"], "failed": tuple(said["baseline"]["failed"])})
    return Outcome(**{**said["outcome"], "fate": Fate(said["outcome"]["fate"])})
