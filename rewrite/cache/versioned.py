"""What goes by a version: code whose results follow from its arguments and from the version of its package.

Code goes by the file that it was compiled from, not by the name under which it is found: a function that replaces one
of torch is whatever it is. Functions of the standard library that read the world (files, the environment, clocks) have
results that no version tells; only modules that are known to have none of these are taken.
"""

from __future__ import annotations

import builtins
import os
import sys
import sysconfig
import types
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "rewrite", "passes", "codegen")
"""Whose versions, or sums over all source files, are part of every key."""

_PURE = frozenset({
    "__future__", "_abc", "_bisect", "_collections", "_collections_abc", "_decimal", "_functools", "_heapq",
    "_operator", "_pydecimal", "_sre", "_struct", "_warnings", "abc", "bisect", "builtins", "cmath", "collections",
    "contextlib", "copy", "copyreg", "dataclasses", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "keyword", "math", "numbers", "operator", "re", "statistics", "string", "struct", "textwrap", "types", "typing",
    "warnings",
})  # fmt: skip
"""Modules of the standard library whose functions and objects depend on nothing but what they are given."""

_PURE_NAMES = frozenset({("argparse", "Namespace"), ("argparse", "_AttributeHolder")})

_OUTSIDE = ("torch.serialization", "torch.hub", "torch.package", "torch.distributed", "torch.utils.data",
            "torch.utils.cpp_extension", "torch.multiprocessing", "torch.random")  # fmt: skip
"""Modules of torch that read files, other processes or generators."""

_UNSEEN = frozenset({
    builtins.__import__, builtins.breakpoint, builtins.compile, builtins.dir, builtins.eval, builtins.exec,
    builtins.getattr, builtins.globals, builtins.input, builtins.locals, builtins.open, builtins.vars,
    typing.get_type_hints, torch.from_file,
})  # fmt: skip
"""What reaches more than it is given, or what no name tells."""

_NAMESPACES = ("aten", "prims", "prim", "quantized")


def is_versioned(module: Any) -> bool:
    """Whether the loaded module of a name is one of torch, Python or this project, and no other that hides it."""
    name = str(module)
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names and top not in PACKAGES:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or _is_original(file)


def is_original(function: types.FunctionType) -> bool:
    """Whether a function was compiled from a file of torch, Python or this project, or made by one of them."""
    file = function.__code__.co_filename
    if file.startswith("<") and not file.startswith("<frozen "):
        return is_versioned(function.__globals__.get("__name__"))
    return _is_original(file)


@lru_cache(maxsize=4096)
def _is_original(file: str) -> bool:
    if file.startswith("<"):
        return True
    path = os.path.abspath(file)
    for root in _roots():
        if path.startswith(root):
            return "-packages" + os.sep not in path[len(root) :]
    return False


@lru_cache(maxsize=1)
def _roots() -> tuple[str, ...]:
    """The directories, the standard library last: it may have all the others inside."""
    own = Path(__file__).parents[1]
    roots = [Path(torch.__file__).parent, *(own.parent / name for name in PACKAGES[1:])]
    roots += [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    return tuple(f"{os.path.abspath(root)}{os.sep}" for root in roots)


def is_itself(value: Any) -> bool:
    """Whether a class or function is what its module has under its name, in a module that goes by its version."""
    module = str(getattr(value, "__module__", None))
    if not is_versioned(module):
        return False
    found: Any = sys.modules.get(module)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def outside(value: Any) -> str:
    """Why results of a function or class of torch or Python do not follow from its arguments; '' where they do."""
    module, name = getattr(value, "__module__", None) or "builtins", value.__qualname__
    top = module.partition(".")[0]
    if value in _UNSEEN:
        return f"'{name}', which reaches what cannot be seen"
    if module.startswith(_OUTSIDE):
        return f"'{module}.{name}', which reads more than it is given"
    if top in PACKAGES or top in _PURE or (module, name) in _PURE_NAMES:
        return ""
    return f"'{module}.{name}', which may read more than it is given"


def is_operator_of_torch(value: Any) -> bool:
    """Whether an operator is one of torch's own, and not of a library that a program registered."""
    return str(value).partition(".")[0] in _NAMESPACES


@lru_cache(maxsize=1)
def namespaces() -> tuple[Any, ...]:
    """Where models find the functions of torch, and torch its own: what may have been replaced there counts."""
    return torch, torch.nn.functional, torch.Tensor
