"""The source files behind a program: an entry holds as long as all of them are as they were."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewrite.cache.versioned import is_versioned

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rewrite.graph import Graph

_FILE = re.compile(r'^\s*File "([^"]+)", line', re.MULTILINE)


def file_of(module: str) -> str | None:
    """The source file of a loaded module, None where it has none (built in, typed at a prompt, in an archive)."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str) or not file.endswith((".py", ".pyw")) or not os.path.isfile(file):
        return None
    return os.path.abspath(file)


def sources_of(modules: Iterable[str], graph: Graph) -> dict[str, Any]:
    """The state of the files that a program comes from, by path.

    These are the files of the given modules, of all lines that tracing went through, and of every loaded module of the
    same top-level packages, without torch, Python and this project, which go by their versions.
    """
    traced = {file for node in graph.nodes for file in _FILE.findall(node.meta.get("stack_trace") or "")}
    by_file = {file: name for name in list(sys.modules) if (file := file_of(name)) is not None}
    names = {*modules, *(by_file[file] for file in traced if file in by_file)}
    tops = {name.partition(".")[0] for name in names if not is_versioned(name)}
    files = {file for file, name in by_file.items() if name.partition(".")[0] in tops}
    others = {file for file in traced - by_file.keys() if os.path.isfile(file)}
    return {file: _state(file) for file in sorted(files | others)}


def unchanged(recorded: Mapping[str, Any]) -> bool:
    """Whether files are as :func:`sources_of` recorded them; one that was only touched counts as unchanged."""
    return all(_is_as(file, state) for file, state in recorded.items())


def _is_as(file: str, state: Mapping[str, Any]) -> bool:
    try:
        found = os.stat(file)
        if found.st_size != state["size"]:
            return False
        return bool(found.st_mtime_ns == state["mtime_ns"] or _sum(file) == state["sha256"])
    except OSError:
        return False


def _state(file: str) -> dict[str, Any]:
    found = os.stat(file)
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": _sum(file)}


def _sum(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@lru_cache(maxsize=64)
def package_sum(name: str) -> str:
    """A digest of all source files of an imported package, or of the one file of a module."""
    digest = hashlib.sha256()
    file = file_of(name)
    if file is not None:
        path = Path(file)
        for each in sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]:
            digest.update(f"{each.relative_to(path.parent)}\0".encode() + each.read_bytes())
    return digest.hexdigest()
