"""``torch-rewrite bisect``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rewrite.verdict import Verdict

NET = ("bisect", "tests.cli.nets:branches", "-i", "2,3,8,8")


@pytest.mark.parametrize("check", ["has_two_convolutions", "asserts_two_convolutions"])
def test_the_first_rewrite_that_makes_a_check_fail(run: Any, check: str) -> None:
    done = run(*NET, "--check", f"tests.cli.nets:{check}")
    first, second, *_ = done.out.splitlines()
    assert first.startswith("rewrite 1 of 3 makes the check fail: merge-branches (nets.py:")
    assert second == ("because one convolution only" if "asserts" in check else "")
    assert "@@ merge-branches #1" in done.out
    assert "to go on without it: --exclude merge-branches" in done.out
    assert "  optimize --fuel 0 stops right before it, --fuel 1 right after it" in done.out
    assert [line.partition(";")[0] for line in done.err.splitlines()[2:]] == [
        "run 1: fails after 3 rewrites", "run 2: passes after 0 rewrites", "run 3: fails after 1 rewrites",
    ]  # fmt: skip


def test_the_rewrite_as_a_script(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "rewrite.py"
    done = run(*NET, "--check", "tests.cli.nets:has_two_convolutions", "--reproduce", path)
    assert done.err.splitlines()[-1].startswith(f"{path} written, ")
    made = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert made.stdout.endswith("old and new agree\n")


def test_the_whole_model_is_the_check_unless_there_is_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*given: Any) -> Verdict:
        operators = [str(node.target) for node in given[2].nodes]
        return Verdict("aten.mul.Tensor" not in operators, "there is a product")

    monkeypatch.setattr("rewrite.api.bisecting.compare_whole", compare)
    out = run(*NET, "--pipeline", "reparameterize").out
    assert out.startswith("rewrite 1 of 1 makes the check fail: merge-branches")
    assert "because there is a product" in out


@pytest.mark.parametrize(("options", "code", "words"), [
    ((), 1, "check passes on all 3 rewrites"),
    (("--check", "tests.cli.nets:never"), 1, "check fails on the unrewritten program already"),
    (("--pipeline", "fold-layer-scale"), 1, "the pipeline makes no rewrite of this model"),
    (("--check", "tests.cli.nets:fails"), 2, "check 'tests.cli.nets:fails' raises LookupError at nets.py:"),
    (("--check", "tests.cli.nets:NUMBER"), 2, "--check 'tests.cli.nets:NUMBER' is of type int; name a function"),
    (("--check", "tests.cli.nets:nevver"), 2, "did you mean 'never'?"),
    (("--reproduce", "/lost/file.py"), 2, "there is no directory '/lost'"),
], ids=["passes", "fails", "nothing", "raises", "no function", "no name", "no directory"])  # fmt: skip
def test_nothing_is_found(run: Any, options: tuple[str, ...], code: int, words: str) -> None:
    done = run(*NET, *options, code=code)
    assert words in done.error
    assert not done.out
