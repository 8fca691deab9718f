"""Command lines in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "rewrite"]
TIMEOUT = 120


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=TIMEOUT,
        **{"env": environment(), **options},
    )  # fmt: skip


NET = """\
from torch import nn

net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Waiting(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)
        print("waiting", flush=True)
        __import__("time").sleep(100)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize(("line", "code"), [
    ("--help", 0), ("optimize --help", 0), ("--version", 0), ("optimize", 2),
])  # fmt: skip
def test_help_does_without_torch(line: str, code: int) -> None:
    program = "import sys; sys.modules['torch'] = None; from rewrite.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *line.split()], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_model_of_the_current_directory_and_its_file_in_another_process(folder: Path) -> None:
    made = call("optimize", "own_net:net", "-i", "1,3,8,8", "--save", "net.rewrite", "--lower", "eager", "--json",
                cwd=folder)  # fmt: skip
    assert made.returncode == 0, made.stderr
    shown = call("show", "net.rewrite", "--verify", "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == json.loads(made.stdout)


def test_a_pipe_that_is_closed_is_silent() -> None:
    process = subprocess.Popen(
        [*COMMAND, "passes", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    process.wait(TIMEOUT)


@pytest.mark.skipif(os.name == "nt", reason="sends a signal of POSIX")
def test_an_interrupt_is_silent(folder: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "optimize", "own_net:Waiting"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(), cwd=folder,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (130, "", "")
