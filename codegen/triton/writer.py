"""Python text, line by line, at a depth of indentation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Writer:
    """Lines of a module.

    Attributes:
        lines: what has been written.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 0

    def __call__(self, line: str = "") -> None:
        """Write a line."""
        self.lines.append("    " * self._depth + line if line else "")

    @contextlib.contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Write a head, and what follows one step deeper."""
        self(head)
        self._depth += 1
        yield
        self._depth -= 1

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"
