"""Progress, warnings, errors and exit codes."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import typer

from rewrite import errors
from rewrite.cli.session import session
from rewrite.verdict import Verdict
from rewrite.versions import __version__

NET = ("optimize", "tests.cli.nets:branches", "-i", "2,3,8,8")


@pytest.mark.parametrize(("arguments", "words"), [
    (["optimise"], "No such command 'optimise'. Did you mean 'optimize'? (see "),
    (["optimize"], "Missing argument 'MODEL'"),
    ([*NET, "--fuel", "few"], "Invalid value for '--fuel'"),
    ([*NET, "--verify", "some"], "Invalid value for '--verify'"),
    ([*NET, "--lower", "onnx"], "Invalid value for '--lower'"),
    ([*NET, "--frob"], "No such option: --frob"),
    ([*NET, "--pipeline", "simplfy"], "there is no pass 'simplfy'; did you mean 'simplify'?"),
    ([*NET, "--exclude", "merge-brunches"], "did you mean 'merge-branches'?"),
    ([*NET, "--method", "featurs"], "did you mean 'features'?"),
    (["optimize", "tests.cli.nets:branches", "-i", "1,4,8,8"], "calling Branches on the example inputs raises Runtime"),
    (["optimize", "tests.cli.nets:Branching", "-i", "3"], "Python decides on the value of a tensor"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")  # fmt: skip
def test_wrong_usage_is_one_line(run: Any, arguments: list[str], words: str) -> None:
    done = run(*arguments, code=2)
    assert words in done.error
    assert not done.out
    assert len(done.err.splitlines()) <= 3


def test_help_without_a_command(run: Any) -> None:
    done = run(code=2)
    assert "Usage" in done.out + done.err
    assert "error" not in done.err


@pytest.mark.parametrize("command", ["", "optimize", "explain", "offers", "bisect", "passes", "show"])
def test_help(run: Any, command: str) -> None:
    out = run(*command.split(), "--help").out
    assert "Usage" in out
    assert ("Exit codes" in out) == (command == "")
    assert run("--version").out == f"torch-rewrite {__version__}\n"


def test_what_was_asked_for_fails(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrite.verify.whole.compare_whole", lambda *_, **__: Verdict(False, "output 0 is wrong"))
    assert "not equal to the model" in run(*NET, code=1).error


@pytest.mark.parametrize(("error", "code", "words"), [
    (errors.InputError("a"), 2, "a"),
    (errors.CaptureError("a"), 2, "a"),
    (errors.PipelineError("a"), 2, "a"),
    (errors.PlanError("a"), 2, "a"),
    (errors.ArtifactError("a"), 2, "a"),
    (errors.VerificationError("a\nb"), 1, "a b"),
    (errors.BisectionError("a"), 1, "a"),
    (errors.CycleError("a"), 1, "a"),
    (FileNotFoundError(2, "No such file", "x"), 2, "'x': No such file"),
    (OSError(28, "No space left", "x"), 1, "'x': No space left"),
    (ZeroDivisionError("zero\nmore"), 1, "unexpected ZeroDivisionError: zero; --traceback shows where"),
    (AssertionError(), 1, "unexpected AssertionError; --traceback shows where"),
], ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "")  # fmt: skip
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str) -> None:
    with pytest.raises(typer.Exit) as exited, session(quiet=False, traced=False):
        raise error
    assert exited.value.exit_code == code
    assert capsys.readouterr().err == f"error: {words}\n"


def test_a_traceback_where_it_is_wanted(run: Any) -> None:
    err = run("optimize", "tests.cli.nets:broken", "--traceback", code=2).err
    assert err.startswith("Traceback")
    assert 'raise KeyError("no such weights")' in err
    assert err.splitlines()[-1].startswith("error: making")


@pytest.mark.filterwarnings("default")
def test_what_the_users_code_says_is_no_result(run: Any) -> None:
    done = run("explain", "tests.cli.nets:loud", "--json")
    assert done.data["model"] == "Timid"
    assert done.err.splitlines()[:2] == ["made loudly", "warning: careful"]


def test_everything_is_put_back() -> None:
    logger = logging.getLogger("rewrite")
    before = logger.level, [*logger.handlers], warnings.showwarning
    with session(quiet=False, traced=False):
        assert logger.isEnabledFor(logging.INFO)
    assert (logger.level, logger.handlers, warnings.showwarning) == before
