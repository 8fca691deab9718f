"""What ties the packaging files to the code."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rewrite

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Version]:
    """The versions in constraints.txt by normalised name; a line that is not an exact pin is an error."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    exact = {}
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        exact[canonicalize_name(requirement.name)] = Version(specifier.version)
    return exact


def test_version_of_the_distribution_is_that_of_the_package() -> None:
    assert PROJECT["version"] == rewrite.__version__


def test_every_requirement_is_pinned_inside_its_range() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = [Requirement(text) for text in (*PROJECT["dependencies"], *itertools.chain(*extras.values()))]
    exact = pins()
    for requirement in declared:
        if requirement.name != PROJECT["name"]:
            assert exact[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_suit_cpu_and_cuda_builds() -> None:
    exact = pins()
    assert all(version.local is None for version in exact.values())
    assert not [name for name in exact if re.match("nvidia|cuda", name)]
    # torchvision requires one exact torch: 0.N belongs to 2.(N - 15).
    assert exact["torch"].minor == exact["torchvision"].minor - 15


def test_imports_from_a_bare_copy_of_the_packages(tmp_path: Path) -> None:
    """With -S no .pth file is read, so neither is an editable install; site-packages is an ordinary path entry."""
    for package in ("rewrite", "passes", "codegen"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import rewrite; print(rewrite.__file__); print(rewrite.__version__)"
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, version = done.stdout.splitlines()
    assert Path(file).resolve().is_relative_to(tmp_path.resolve())
    assert version == PROJECT["version"]
