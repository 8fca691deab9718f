"""The import contracts of pyproject.toml, tried on small packages that keep or break them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GOOD = {
    "rewrite/__init__.py": "def optimize():\n    from rewrite.api import optimize\n    return optimize()\n",
    "rewrite/api/__init__.py": "from rewrite.api.optimizing import optimize\n",
    "rewrite/api/optimizing.py": "import codegen.emit\nimport passes\nimport rewrite.graph\n",
    "rewrite/backend.py": "import passes\nfrom rewrite.api.optimizing import optimize\n",
    "rewrite/cli/__init__.py": "from rewrite.cli.app import main\n",
    "rewrite/cli/app.py": "import passes\nfrom rewrite.api import optimize\n",
    "rewrite/__main__.py": "from rewrite.cli import main\n",
    "rewrite/graph.py": "",
    "rewrite/report/__init__.py": "import rewrite.graph\n",
    "passes/__init__.py": "import passes.fold\n",
    "passes/fold.py": "from rewrite.graph import Graph\nfrom rewrite import graph\n",
    "codegen/__init__.py": "",
    "codegen/emit.py": "from rewrite.report import Report\n",
}

BAD = {
    "framework imports a pass": ("rewrite/report/diff.py", "import passes.fold"),
    "framework imports a kernel when called": ("rewrite/later.py", "def f():\n    from codegen import emit"),
    "framework imports a pass for its types": (
        "rewrite/graph.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import passes",
    ),
    "framework imports the composition root": ("rewrite/graph.py", "from rewrite.api import optimize"),
    "framework imports a part of the composition root": ("rewrite/graph.py", "import rewrite.api.optimizing"),
    "framework imports the backend": ("rewrite/graph.py", "from rewrite import backend"),
    "framework imports the command line": ("rewrite/graph.py", "from rewrite import cli"),
    "framework imports a part of the command line": ("rewrite/later.py", "import rewrite.cli.app"),
    "passes import the command line": ("passes/later.py", "from rewrite.cli import main"),
    "framework imports the facade": ("rewrite/later.py", "from rewrite import optimize"),
    "the facade imports a pass": ("rewrite/__init__.py", "import passes"),
    "passes import codegen": ("passes/fold.py", "import codegen.emit"),
    "codegen imports passes": ("codegen/emit.py", "from passes import fold"),
    "passes import the composition root": ("passes/later.py", "import rewrite.api"),
    "passes import the facade": ("passes/later.py", "from rewrite import optimize"),
}


def lint(root: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Check packages made of `files` under `root` against the contracts of this repository."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(ROOT / "pyproject.toml", root)
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo"], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture(autouse=True)
def _needs_import_linter() -> None:
    pytest.importorskip("importlinter")


def test_layers_that_are_kept_pass(tmp_path: Path) -> None:
    done = lint(tmp_path, GOOD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("case", BAD)
def test_import_against_the_layers_is_found(case: str, tmp_path: Path) -> None:
    name, text = BAD[case]
    done = lint(tmp_path, {**GOOD, name: text})
    assert done.returncode == 1
    assert "1 broken" in done.stdout, done.stdout + done.stderr
    assert name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") in done.stdout
