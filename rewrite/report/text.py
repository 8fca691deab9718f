"""Tables, paragraphs and numbers in plain text; paragraphs are at most :data:`WIDTH` columns wide."""

from __future__ import annotations

import contextlib
import textwrap
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rewrite.gain import BYTES_PER_SECOND, FLOPS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH = 100
_PREFIXES = ("", "k", "M", "G", "T", "P")
_columns: ContextVar[int] = ContextVar("columns", default=WIDTH)


@contextlib.contextmanager
def narrowed(columns: int | None) -> Iterator[None]:
    """Within, paragraphs are at most so many columns wide where that is less than :data:`WIDTH`; None for no change."""
    token = _columns.set(WIDTH if columns is None else min(columns, WIDTH))
    try:
        yield
    finally:
        _columns.reset(token)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns aligned, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]  # fmt: skip


def wrapped(label: str, text: str, indent: int | None = None) -> list[str]:
    """A paragraph that begins with a label, as lines.

    Args:
        label: how the first line begins.
        text: the rest.
        indent: of the further lines; by default the width of the label.
    """
    margin = " " * (len(label) if indent is None else indent)
    # names of passes have hyphens and are copied
    return textwrap.wrap(
        text, _columns.get(), initial_indent=label, subsequent_indent=margin, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def roofline(what: str, per_sample: bool) -> str:
    """How work was estimated: ``Savings are estimates ...``.

    Args:
        what: is estimated.
        per_sample: whether for one sample; else for a call, whose batch is fixed.
    """
    speed = f"{scaled(int(FLOPS_PER_SECOND), 'FLOP/s')} and {scaled(int(BYTES_PER_SECOND), 'B/s')}"
    return f"{what} are estimates by a nominal roofline of {speed}, for one {'sample' if per_sample else 'call'}."


def scaled(number: int, unit: str) -> str:
    """Three digits and a decimal prefix: ``8.31 M``, ``33.2 MB``."""
    value, power = float(number), 0
    while float(f"{value:.3g}") >= 1000 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    text = f"{value:#.3g}".rstrip(".") if power else str(number)
    return f"{text} {_PREFIXES[power]}{unit}".rstrip()
