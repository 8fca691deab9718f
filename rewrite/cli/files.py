"""Files that commands write: checked before a long run, and replaced at once after it."""

from __future__ import annotations

import html
import json
import os
from typing import TYPE_CHECKING

from rewrite.errors import InputError
from rewrite.files import write
from rewrite.report import refusals_text
from rewrite.report.text import scaled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rewrite.cli.terminal import Terminal
    from rewrite.report import Report

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ margin: 2em }} pre {{ overflow-x: auto }}</style>
</head>
<body>
<h1>{title}</h1>
{report}
<h2>Not rewritten</h2>
<pre>{refusals}</pre>
<h2>Rewrites</h2>
{diff}
</body>
</html>
"""


def require_writable(paths: Iterable[Path | None]) -> None:
    """Check that files can be written, as far as their directories tell.

    Raises:
        InputError: one cannot.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"'{path}' is a directory; give the path of a file")
        if not path.parent.is_dir():
            raise InputError(f"'{path}' cannot be written: there is no directory '{path.parent}'; make it first")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"'{path}' cannot be written: '{path.parent}' is read-only; give another path")


def written(path: Path, text: str, terminal: Terminal) -> None:
    """Write text to a file, and say so."""
    write(path, text.encode())
    said(path, terminal)


def said(path: Path, terminal: Terminal) -> None:
    """Say that a file was written."""
    terminal.say(f"{path} written, {scaled(path.stat().st_size, 'B')}")


def report_file(report: Report, path: Path) -> str:
    """A report as its file has it: a page for ``.html``, data for ``.json``, else plain text."""
    match path.suffix.lower():
        case ".html" | ".htm":
            return _page(report)
        case ".json":
            return json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
    return f"{report}\n"


def _page(report: Report) -> str:
    return _PAGE.format(
        title=html.escape(f"{report.model_name}, rewritten"),
        report=report._repr_html_(),
        refusals=html.escape(refusals_text(report.refusals()) or "(nothing was refused)"),
        diff=report.diff(collapse=True)._repr_html_(),
    )
