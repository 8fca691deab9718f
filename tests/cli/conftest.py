"""A command line run in this process."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from rewrite.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Done:
    """The exit code of a command, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error, which has to be the last line and the only error."""
        *progress, last = self.err.splitlines()
        assert last.startswith("error: ")
        assert not any(line.startswith(("error", "Traceback")) for line in progress)
        return last.removeprefix("error: ")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command; a code other than the expected fails the test with what was written."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def command(*arguments: object, code: int = 0) -> Done:
        found = main([str(argument) for argument in arguments])
        done = Done(found, *capsys.readouterr())
        assert done.code == code, done
        return done

    return command
