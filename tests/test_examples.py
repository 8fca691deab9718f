"""Every example runs and shows what it promises."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = {"write_a_rule": "aten.silu", "check_a_rule": "was rejected: output 'mul", "train": "equal",
         "demo": "optimized", "find_a_wrong_rule": "makes the check fail: cheap-gelu",
         "write_a_kernel_family": "layer norm -> silu -> add", "approximate": "sites approximated by"}  # fmt: skip
SLOW = ("demo",)
HERE = ("check_a_rule", "train", "find_a_wrong_rule")
"""Run in this process, which has torch imported: they leave nothing behind."""


def run(name: str) -> str:
    """What an example prints in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SHOWN])
def test_example(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name in HERE:
        monkeypatch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert SHOWN[name] in capsys.readouterr().out
    else:
        assert SHOWN[name] in run(name)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"} == set(SHOWN)
