"""Hypothesis is needed by ``rewrite.testing`` and by nothing else of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import rewrite
import rewrite.testing

PACKAGE = Path(rewrite.__file__).parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    without = "import sys; sys.modules['hypothesis'] = None; "
    return subprocess.run([sys.executable, "-c", without + code], cwd=PACKAGE.parent, capture_output=True, text=True,
                          check=False)  # fmt: skip


def test_without_hypothesis_one_sentence_says_what_to_install():
    done = python("import rewrite.testing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: rewrite.testing draws its examples with Hypothesis; install it: pip install hypothesis"
    )


def test_nothing_else_imports_it():
    importing = re.compile(r"^\s*(import|from) (hypothesis|rewrite\.testing)", re.MULTILINE)
    files = [path for root in ("rewrite", "passes", "codegen") for path in (PACKAGE.parent / root).rglob("*.py")]
    outside = [path for path in files if not path.is_relative_to(PACKAGE / "testing")]
    assert len(outside) > 100
    assert [str(path) for path in outside if importing.search(path.read_text())] == []


def test_everything_public_has_a_name():
    assert all(hasattr(rewrite.testing, name) for name in rewrite.testing.__all__)
