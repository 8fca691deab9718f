"""Pickling, and loading in a fresh process."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rewrite
from rewrite import ArtifactError
from rewrite.result import OptimizedModule
from tests.loading.files import eager
from tests.result.programs import image, net


def test_pickles_stand_alone(made: Any) -> None:
    fast = copy.deepcopy(made[1])
    fast.tags = ["a"]
    found = pickle.loads(pickle.dumps(fast))
    assert torch.equal(found(image()), fast(image()))
    assert found.tags == ["a"]
    assert isinstance(found, OptimizedModule)
    assert (found.num_classes, list(found.report.time)) == (5, list(fast.report.time))
    file = io.BytesIO()
    torch.save({"net": found}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)["net"](image()), fast(image()))
    with pytest.raises(ArtifactError, match="has no program yet"):
        pickle.dumps(eager(net()))


FRESH = """
import pickle, sys, torch
from rewrite import load
for found in (load(sys.argv[1], lower="eager"), pickle.load(open(sys.argv[2], "rb"))):
    data = torch.load(sys.argv[3])
    assert torch.equal(found(data["x"]), data["y"])
    assert "simplify" in str(found.report)
assert not [name for name in sys.modules if name.startswith(("tests", "timm"))]
"""


def test_a_fresh_process_without_the_code_of_the_model(made: Any, tmp_path: Path) -> None:
    _, fast, path = made
    (tmp_path / "net.pickle").write_bytes(pickle.dumps(fast))
    torch.save({"x": image(3), "y": fast(image(3))}, tmp_path / "data")
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-c",
        FRESH,
        path,
        tmp_path / "net.pickle",
        tmp_path / "data",
    ]
    root = Path(rewrite.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
