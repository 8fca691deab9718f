"""What is shown on a terminal, which is narrower than a file and has colours."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rewrite.cli.terminal import Terminal

COLOUR = re.compile("\x1b\\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both streams are terminals of 80 columns."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "50"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_terminal")
def test_a_report_is_as_wide_as_the_terminal(run: Any) -> None:
    done = run("optimize", "tests.cli.nets:branches", "-i", "2,3,8,8")
    assert max(map(len, done.out.splitlines())) <= 80
    assert "rewriting and verifying" in done.err
    assert "\x1b[2m" in done.err
    assert "\x1b" not in done.out


@pytest.mark.usefixtures("_terminal")
def test_a_table_is_as_wide_as_the_terminal(run: Any) -> None:
    out = COLOUR.sub("", run("passes").out)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("_terminal")
def test_diffs_have_colours(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().put_diff("@@ one\n- old\n+ new\n\nrest")
    assert capsys.readouterr().out == "\x1b[35m@@ one\x1b[0m\n\x1b[31m- old\x1b[0m\n\x1b[32m+ new\x1b[0m\n\nrest\n"


def test_files_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.doing("working")
    terminal.put_diff("@@ one\n- old")
    terminal.put("[bold]as it is[/bold] :smile:")
    terminal.put_data({"é": [1.5, None]})
    done = capsys.readouterr()
    assert done.out == '@@ one\n- old\n[bold]as it is[/bold] :smile:\n{\n "é": [\n  1.5,\n  null\n ]\n}\n'
    assert done.err == ""
    assert terminal.columns is None


def test_quiet_is_for_progress(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.say("progress")
    terminal.warn("a\n warning")
    terminal.fail("an error")
    assert capsys.readouterr().err == "warning: a warning\nerror: an error\n"
