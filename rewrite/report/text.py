"""Tables, paragraphs and numbers in plain text, at most :data:`WIDTH` columns wide."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 100
_PREFIXES = ("", "k", "M", "G", "T", "P")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns aligned, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]  # fmt: skip


def wrapped(label: str, text: str) -> list[str]:
    """A paragraph that begins with a label, as lines of which the further ones are indented by it."""
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False)


def scaled(number: int, unit: str) -> str:
    """Three digits and a decimal prefix: ``8.31 M``, ``33.2 MB``."""
    value, power = float(number), 0
    while float(f"{value:.3g}") >= 1000 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    text = f"{value:#.3g}".rstrip(".") if power else str(number)
    return f"{text} {_PREFIXES[power]}{unit}".rstrip()
