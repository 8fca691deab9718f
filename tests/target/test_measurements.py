"""Measurements that outlast a process, whatever befalls their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rewrite.target import Measurements, Target
from rewrite.target import measurements as module


def only_file(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def test_numbers_are_found_by_another_process(tmp_path):
    Measurements(tmp_path).keep("a", {"x": 1.5, "y": 2.0})
    assert Measurements(tmp_path).read("a") == {"x": 1.5, "y": 2.0}
    assert Measurements(tmp_path).read("b") is None


def test_without_a_directory_memory_has_them():
    kept = Measurements()
    kept.keep("a", {"x": 1.0})
    assert kept.read("a") == {"x": 1.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("\x00\xff", "Expecting value"),
        ('{"format": 0, "key": "a", "numbers": {"x": 1.0}}', "its format is not"),
        ('{"format": 1, "key": "other", "numbers": {"x": 1.0}}', "it is of something else"),
        ('{"format": 1, "key": "a", "numbers": {}}', "it holds no numbers"),
        ('{"format": 1, "key": "a", "numbers": {"x": "1"}}', "'x' is '1'"),
        ('{"format": 1, "key": "a", "numbers": {"x": true}}', "'x' is True"),
        ('{"format": 1, "key": "a", "numbers": {"x": -1}}', "'x' is -1"),
        ('{"format": 1, "key": "a", "numbers": {"x": NaN}}', "'x' is nan"),
        ("[1, 2]", "its format is not"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_file_is_a_warning_and_a_miss(tmp_path, text, reason):
    Measurements(tmp_path).keep("a", {"x": 1.0})
    only_file(tmp_path).write_text(text)
    damaged = Measurements(tmp_path)
    with pytest.warns(RuntimeWarning, match=reason):
        assert damaged.read("a") is None
    damaged.keep("a", {"x": 3.0})
    assert Measurements(tmp_path).read("a") == {"x": 3.0}


def test_it_is_said_once(tmp_path):
    for key in "ab":
        Measurements(tmp_path).keep(key, {"x": 1.0})
    for file in tmp_path.iterdir():
        file.write_text("no")
    damaged = Measurements(tmp_path)
    with pytest.warns(RuntimeWarning):
        damaged.read("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert damaged.read("b") is None


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    kept = Measurements(blocked / "measurements")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        kept.keep("a", {"x": 1.0})
    assert kept.read("a") == {"x": 1.0}


WRITER = """
import sys
from pathlib import Path
from rewrite.target import Measurements
kept = Measurements(Path(sys.argv[1]))
for i in range(50):
    kept.keep(f"{i}", {"x": float(sys.argv[2]) + i})
"""


def test_two_processes_may_share_a_directory(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(1000 * n)], env=environment)
        for n in range(2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    for i in range(50):
        assert Measurements(tmp_path).read(f"{i}") in ({"x": float(i)}, {"x": 1000.0 + i})
    assert all(file.suffix == ".json" for file in tmp_path.iterdir())


def test_the_oldest_go_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 10)
    kept = Measurements(tmp_path)
    for i in range(10):
        kept.keep(f"{i}", {"x": 1.0})
        os.utime(kept._path(f"{i}"), (i, i))
    (tmp_path / ".half.tmp").write_text("")
    os.utime(tmp_path / ".half.tmp", (1, 1))
    Measurements(tmp_path).keep("new", {"x": 1.0})
    left = Measurements(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
    assert left.read("0") is None
    assert left.read("1") is None
    assert left.read("new") == {"x": 1.0}


def test_another_machine_and_another_setting_measure_anew(tmp_path, monkeypatch):
    def target() -> Target:
        return Target(measurements=Measurements(tmp_path))

    calls = {"a": lambda: torch.zeros(100_000).sum(), "b": lambda: torch.zeros(200_000).sum()}
    monkeypatch.setattr("rewrite.target.target.settled", _settled)
    assert target().measure("this", calls).ms == {"a": 1.0, "b": 2.0}
    monkeypatch.setattr("rewrite.target.target.settled", None)  # what is known is not measured
    assert target().measure("this", calls).ms == {"a": 1.0, "b": 2.0}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(TypeError):
        target().measure("this", calls)
    monkeypatch.undo()
    monkeypatch.setattr("rewrite.target.target.settled", None)
    with pytest.raises(TypeError):  # other contenders
        target().measure("this", {"a": calls["a"]})


def _settled(contenders, *rest, **settings):
    from rewrite.timing import Comparison, Timing

    return Comparison({name: Timing(i, i, i, 3) for i, name in enumerate(contenders, start=1)}, 0.01)


def test_a_busy_machine_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("rewrite.target.target.settled", lambda *given, **settings: None)
    target = Target(measurements=Measurements(tmp_path))
    assert target.measure("this", {"a": lambda: None}) is None
    assert target.speeds is None
    assert not list(tmp_path.iterdir())


def test_speeds_of_this_machine():
    speeds = Target(seconds=0.5).speeds
    assert speeds is None or (
        speeds.rates.flops > 1e8
        and speeds.rates.bytes > 1e7
        and speeds.converted > 1e7
        and speeds.conversion(1000) < 1e-3 < speeds.conversion(10**9)
    )


def test_files_are_json(tmp_path):
    Measurements(tmp_path).keep("a", {"x": 1.0})
    assert json.loads(only_file(tmp_path).read_text()) == {"format": 1, "key": "a", "numbers": {"x": 1.0}}
