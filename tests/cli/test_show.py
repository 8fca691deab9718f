"""``torch-rewrite show``: what a saved result says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from rewrite import Plan, optimize
from tests.cli.nets import branches
from tests.loading.files import edit

if TYPE_CHECKING:
    from pathlib import Path

    from rewrite.result import OptimizedModule


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[OptimizedModule, Path]:
    """A result for two sizes of images, and its file."""
    torch.manual_seed(0)
    fast = optimize(branches().eval(), torch.randn(2, 3, 8, 8), lower="eager")
    fast(torch.randn(2, 3, 9, 9))
    path = tmp_path_factory.mktemp("saved") / "net.rewrite"
    fast.save(path)
    return fast, path


def test_the_report(run: Any, saved: Any) -> None:
    fast, path = saved
    out = run("show", path).out
    assert "Branches, " in out
    assert "of weights in" in out
    assert "program 1 of 2 takes (float32[N, 3, 8, 8])" in " ".join(out.split())
    assert str(fast.report) in out
    assert f"plan  3 rewrites lead from the program {fast.plan.before[:12]}" in out
    assert "(float32[N, 3, 9, 9])" in run("show", path, "--program", 2).out
    assert "--program 3 is not in the file, which has 2" in run("show", path, "--program", 3, code=2).error
    assert "--program 0 is not in the file" in run("show", path, "--program", 0, code=2).error


def test_its_parts(run: Any, saved: Any) -> None:
    fast, path = saved
    assert run("show", path, "--json").data == fast.report.to_dict()
    assert Plan.from_json(run("show", path, "--plan").out) == fast.plan
    assert Plan.from_json(run("show", path, "--plan", "--program", 2).out).before != fast.plan.before
    assert run("show", path, "--diff", "merge-branches").out == f"{fast.report.diff('merge-branches')}\n"
    assert run("show", path, "--reproduce", 1).out.rstrip("\n") == fast.report.reproduce(1).rstrip("\n")
    assert "--json and --plan are given" in run("show", path, "--json", "--plan", code=2).error


def test_the_outputs_are_compared_with_those_that_were_saved(run: Any, saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.rewrite"
    path.write_bytes(saved[1].read_bytes())
    assert run("show", path, "--verify").err == f"{path} gives the outputs that were saved with it\n"

    def change(data: Any) -> None:
        nodes = data["programs"][0]["graphs"]["graphs"]["rewritten"]["nodes"]
        next(node for node in nodes if node.get("target") == "aten.relu.default")["target"] = "aten.silu.default"

    edit(path, change)
    done = run("show", path, "--verify", code=1)
    assert "does not give the outputs that were saved with it" in done.error
    assert not done.out
    assert run("show", path).out


def test_what_was_not_saved(run: Any, saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    assert f"'{path}': No such file or directory" in run("show", path, code=2).error
    path.write_text("text")
    assert "is nothing that torch-rewrite saved" in run("show", path, code=2).error
    path.write_bytes(saved[1].read_bytes()[:-100])
    assert f"'{path}'" in run("show", path, code=2).error
    assert "is a saved result, not a model" in run("optimize", saved[1], code=2).error
