"""What a command says: results on stdout and nothing else there; progress, warnings and errors on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.status import Status

_PIPED = 100
"""Columns of what is not printed on a terminal, as in files."""

_COLOURS = {"@": "magenta", "-": "red", "+": "green"}


class Terminal:
    """The two streams of a command.

    Args:
        quiet: no progress; warnings and errors are shown all the same.
    """

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._out = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._err = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._status: Status | None = None
        if not self._out.is_terminal:
            self._out.width = _PIPED

    @property
    def columns(self) -> int | None:
        """How wide stdout is, None where it is no terminal."""
        return self._out.width if self._out.is_terminal else None

    # -- stderr -------------------------------------------------------------------------------------------------------

    def doing(self, text: str) -> None:
        """Show what is under way until something else is, or until :meth:`rest`; on a terminal only."""
        if self._quiet or not self._err.is_terminal:
            return
        if self._status is None:
            self._status = self._err.status(text)
            self._status.start()
        self._status.update(text)

    def rest(self) -> None:
        """Show no more that something is under way."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, text: str) -> None:
        """A line of progress."""
        if not self._quiet:
            self._err.print(Text(text, "dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning, as one line."""
        self._err.print(_labelled("warning", "yellow", text), soft_wrap=True)

    def fail(self, text: str) -> None:
        """An error, as one line."""
        self.rest()
        self._err.print(_labelled("error", "bold red", text), soft_wrap=True)

    # -- stdout -------------------------------------------------------------------------------------------------------

    def put(self, text: str) -> None:
        """A result, character by character."""
        self.rest()
        self._out.out(text)

    def put_data(self, data: Any) -> None:
        """A result as JSON."""
        self.put(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False))

    def put_diff(self, text: str) -> None:
        """A diff, alone or within text, in colours on a terminal."""
        self.rest()
        for line in text.splitlines():
            self._out.out(line, style=_COLOURS.get(line[:1]))

    def put_table(self, table: RenderableType) -> None:
        """A table, as wide as the terminal."""
        self.rest()
        self._out.print(table)


def _labelled(label: str, style: str, text: str) -> Text:
    return Text.assemble((f"{label}:", style), " ", " ".join(text.split()))
