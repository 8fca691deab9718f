"""Where a node comes from: the user's module and source line, or the rule that made it."""

from __future__ import annotations

import operator
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_TORCH = os.path.dirname(torch.__file__)
_HERE = os.path.dirname(os.path.abspath(__file__))
KEY = "rewrite_origin"


@dataclass(frozen=True)
class Origin:
    """What a rule records in ``node.meta`` of each node that it makes.

    Attributes:
        rule: the name of the rule.
        match: the number of the match within the run, counted from 1.
        nodes: the names of the nodes that were replaced.
        algebra: the node depends on weights alone, so it is evaluated in float64 when it is folded.
    """

    rule: str
    match: int
    nodes: tuple[str, ...]
    algebra: bool = False


@dataclass(frozen=True)
class Location:
    """A line of the user's source."""

    file: str
    line: int
    function: str
    text: str = ""

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


def origin(node: Node) -> Origin | None:
    """The rule that made this node, or None for a node of the captured model."""
    found = node.meta.get(KEY)
    return found if isinstance(found, Origin) else None


def module_path(node: Node) -> str:
    """The qualified name of the module that the node was called in, '' for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return str(path)


def module_class(node: Node) -> str:
    """The class of that module, with the Python module that defines it; '' where it is not recorded."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][1]) if stack else ""


def location(node: Node) -> Location | None:
    """The innermost line of the user's code in the node's stack, outside torch and this project.

    Where ``forward`` calls helpers it is the helper's line, unless that is in another installed package.
    """
    trace = node.meta.get("stack_trace")
    return _parse(trace) if trace else None


def place(node: Node) -> tuple[str, str, str]:
    """Where a node comes from, as records keep it: module path, ``file:line`` and the line itself, '' where unknown."""
    source = location(node)
    return module_path(node), str(source or ""), source.text if source else ""


@lru_cache(maxsize=4096)
def _parse(trace: str) -> Location | None:
    frames = list(_frames(trace))
    start = max((i for i, frame in enumerate(frames) if frame.function == "forward"), default=0)
    found = frames[start] if frames else None
    for inner in frames[start + 1 :]:
        if found is None or _package(inner.file) not in ("", _package(found.file)):
            break
        found = inner
    return found


def _package(file: str) -> str:
    """The installed package that a file belongs to, '' for the user's own."""
    _, installed, rest = file.replace(os.sep, "/").rpartition("/site-packages/")
    return rest.partition("/")[0] if installed else ""


def _frames(trace: str) -> Iterator[Location]:
    lines = trace.splitlines()
    for i, text in enumerate(lines):
        frame = _FRAME.search(text)
        if frame is None or frame["file"].startswith((_TORCH, _HERE)):
            continue
        source = lines[i + 1].strip() if i + 1 < len(lines) and not _FRAME.search(lines[i + 1]) else ""
        yield Location(frame["file"], int(frame["line"]), frame["function"], source)


def entry(node: Node) -> Location | None:
    """The outermost line of the user's code in the node's stack: where the program was called into."""
    trace = node.meta.get("stack_trace")
    return next(_frames(trace), None) if trace else None


def called(node: Node) -> str:
    """A node in the words of its user: ``relu in 'stages.0.act'``, ``relu (net.py:41)``, ``input 'x'``."""
    if node.op != "call_function":
        kinds = {"placeholder": f"input '{node.target}'", "get_attr": f"'{node.target}'"}
        return kinds.get(node.op, "the model's result")
    path, where = module_path(node), location(node)
    name = function_name(node)
    return f"{name} in '{path}'" if path else f"{name} ({where})" if where else name


def function_name(node: Node) -> str:
    """The function that the user called, as far as it is recorded: ``batch_norm``, ``relu``, ``float``, ``slicing``."""
    recorded = node.meta.get("torch_fn")
    known = str(recorded[1]).rpartition(".")[2] if recorded else ""
    if known == "__getitem__":
        return "slicing" if node.target is torch.ops.aten.slice.Tensor else "indexing"
    if known and not known.startswith("__"):  # others are Python's names of operators: __rsub__, __invert__
        return known
    source: Any = node.args[0] if node.target is operator.getitem else node
    name = getattr(source.target, "_opname", None) or getattr(source.target, "__name__", None)
    return str(name or source.target).strip("_")


def describe(node: Node) -> str:
    """A node as messages name it: ``'add_3' (model.py:41, stages.0.blocks.1)``."""
    where = [str(part) for part in (location(node), module_path(node)) if part]
    return f"'{node.name}' ({', '.join(where)})" if where else f"'{node.name}'"
