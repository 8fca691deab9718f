"""A bar on the terminal while something takes its time; nothing where nobody looks."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Called with how much of how much is done; the bar vanishes at the end.

    Attributes:
        text: what is done.
    """

    text: str
    _bar: Any = field(default=None, repr=False)

    def __call__(self, done: int, total: int) -> None:
        """Show the bar, on a terminal."""
        if sys.stderr is None or not sys.stderr.isatty():  # a program without a console has none
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.add_task(self.text, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done >= total:
            self._bar.stop()
            self._bar = None
