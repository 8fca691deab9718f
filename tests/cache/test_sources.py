"""Source files behind a program: found by modules and by traced lines, and noticed when they change."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rewrite.cache.sources import file_of, package_sum, sources_of, unchanged
from rewrite.graph import Graph
from rewrite.trace import capture

NET = """
import torch
from userpkg.layers import scale
class Net(torch.nn.Module):
    def forward(self, x):
        return scale(x) + 1
"""
LAYERS = "def scale(x):\n    return x * 2\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three modules, one of which the network does not import."""
    root = tmp_path / "userpkg"
    root.mkdir()
    for name, text in (("__init__", ""), ("net", NET), ("layers", LAYERS), ("unused", "")):
        (root / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importlib.import_module("userpkg.net")
    yield root  # type: ignore[misc]
    for name in [name for name in sys.modules if name.partition(".")[0] == "userpkg"]:
        del sys.modules[name]


def graph() -> Graph:
    return capture(sys.modules["userpkg.net"].Net().eval(), (torch.randn(2, 3),)).graph


def test_files_of_the_package_and_of_traced_lines(package: Path) -> None:
    found = sources_of(["userpkg.net"], graph())
    assert set(found) == {str(package / f"{name}.py") for name in ("__init__", "net", "layers")}
    assert set(sources_of([], graph())) == set(found), "lines that tracing went through are enough"
    assert unchanged(json.loads(json.dumps(found)))


def test_torch_python_and_this_project_go_by_version() -> None:
    assert not sources_of(["torch.nn.functional", "json", "rewrite.graph"], capture_nothing())


def capture_nothing() -> Any:
    from tests.programs import Program

    program = Program()
    return program.graph(program.input(torch.ones(1)))


def test_a_file_that_changes(package: Path) -> None:
    found = sources_of(["userpkg.net"], graph())
    layers = package / "layers.py"
    os.utime(layers, ns=(1, 1))
    assert unchanged(found), "it was only touched"
    layers.write_text(LAYERS.replace("2", "3"))
    os.utime(layers, ns=(2, 2))
    assert not unchanged(found), "as long as before, with other text"
    layers.write_text(LAYERS)
    assert unchanged(found)
    layers.write_text(LAYERS + "\n")
    assert not unchanged(found)
    layers.unlink()
    assert not unchanged(found)


def test_modules_without_a_file() -> None:
    assert file_of("sys") is None
    assert file_of("no.such.module") is None
    assert file_of("torch._C") is None
    assert file_of(__name__) == os.path.abspath(__file__)


def test_the_sum_of_a_package(package: Path) -> None:
    before = package_sum("userpkg")
    (package / "unused.py").write_text("x = 1\n")
    package_sum.cache_clear()
    assert package_sum("userpkg") != before
    (package / "unused.py").write_text("")
    package_sum.cache_clear()
    assert package_sum("userpkg") == before
    (package / "unused.py").rename(package / "other.py")
    package_sum.cache_clear()
    assert package_sum("userpkg") != before
