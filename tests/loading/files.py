"""Saving, loading, and editing files, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from rewrite import load, optimize
from rewrite.artifact.container import packed, unpacked
from rewrite.result import OptimizedModule


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> OptimizedModule:
    return optimize(model, *args, lower="eager", **kwargs)


def saved(result: OptimizedModule, path: Path) -> OptimizedModule:
    """The result from its file, without the model."""
    result.save(path)
    return load(path, lower="eager")


def edit(path: Path, change: Any) -> None:
    """Let ``change`` edit ``programs.json`` as data, and write the file with right checksums."""
    members = unpacked(path.read_bytes(), "it")
    data = json.loads(members["programs.json"])
    change(data)
    path.write_bytes(packed({**members, "programs.json": json.dumps(data).encode()}, {}))
