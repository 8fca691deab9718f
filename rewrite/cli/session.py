"""One command from begin to end: its progress, its warnings, and what becomes of its errors.

Exit codes: 0 for success, 1 where what was asked for failed, 2 for wrong usage or a model or input that does not fit,
130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import typer

from rewrite.cli.terminal import Terminal
from rewrite.errors import (
    ArtifactError,
    BisectionError,
    CaptureError,
    InputError,
    PipelineError,
    PlanError,
    RewriteError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

FAILED, UNFIT = 1, 2

PHASES = frozenset({"captured", "cache-hit", "step-finished", "rejection", "verified", "lowered"})
"""The events that a command shows as progress, unless it names others."""

_UNFIT = (InputError, CaptureError, PipelineError, PlanError, ArtifactError)
_NO_FILE = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


@contextlib.contextmanager
def session(quiet: bool, traced: bool, shown: Collection[str] = PHASES) -> Iterator[Terminal]:
    """Run a command in it.

    Args:
        quiet: show no progress.
        traced: show the traceback of an error, too.
        shown: the events that are progress, see :mod:`rewrite.events`.

    Raises:
        typer.Exit: the command failed, which has been said.
    """
    terminal = Terminal(quiet)
    try:
        # what the user's code prints is no result
        with contextlib.redirect_stdout(sys.stderr), _progress(terminal, shown), _warnings(terminal):
            terminal.doing("loading torch")
            try:
                yield terminal
            finally:
                terminal.rest()
    except (typer.Exit, typer.TyperException):
        raise
    except Exception as error:
        if traced:
            traceback.print_exception(error)
        terminal.fail(_sentence(error))
        raise typer.Exit(_code(error)) from None


def _code(error: Exception) -> int:
    if isinstance(error, BisectionError):
        return FAILED
    return UNFIT if isinstance(error, (*_UNFIT, *_NO_FILE)) else FAILED


def _sentence(error: Exception) -> str:
    if isinstance(error, RewriteError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}': {error.strerror}"
    lines = str(error).strip().splitlines()
    return f"unexpected {type(error).__name__}{f': {lines[0]}' if lines else ''}; --traceback shows where"


@contextlib.contextmanager
def _progress(terminal: Terminal, shown: Collection[str]) -> Iterator[None]:
    logger, handler = logging.getLogger("rewrite"), _Progress(terminal, shown)
    level = logger.level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Progress(logging.Handler):
    """Shows events of the run as lines of progress."""

    def __init__(self, terminal: Terminal, shown: Collection[str]):
        super().__init__(logging.INFO)
        self._terminal, self._shown = terminal, shown

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", "")
        if event in self._shown:
            self._terminal.say(record.getMessage())
        if event == "captured":
            self._terminal.doing("rewriting and verifying")


@contextlib.contextmanager
def _warnings(terminal: Terminal) -> Iterator[None]:
    """Show the first line of each warning that Python shows."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        terminal.warn(str(message).strip().partition("\n")[0])

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
