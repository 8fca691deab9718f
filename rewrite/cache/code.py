"""Code as digests: the functions of classes, what they call by name, and what globals they read, as they are now.

Files alone do not tell: a method may have been replaced since it was imported, and a file may have been edited. Code of
torch and of the standard library goes by its version. Large containers and objects of such libraries are not looked
into; a program that depends on them is found out when it is compared with the model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import types
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rewrite.artifact.tensors import pack
from rewrite.trace.compare import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewrite.cache.fingerprint import Fingerprint

_CONTAINERS = (tuple, list, set, frozenset, dict)
_MANY = 256
"""Containers of more are tables of other things than what a call depends on."""


_NO_CODE = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slotnames__"})
"""What classes have that no call depends on, the last only since an object was copied."""


def is_versioned(module: str | None) -> bool:
    """Whether the code of a module goes by a version: torch, Python, and this project."""
    top = (module or "").partition(".")[0]
    return top in sys.stdlib_module_names or top in ("torch", "rewrite")


class Code:
    """Walks through code and adds it to a fingerprint.

    Attributes:
        modules: the names of the modules whose code was met.
    """

    def __init__(self, digest: Fingerprint):
        self.modules: dict[str, None] = {}
        self._digest = digest
        self._seen: set[Any] = set()
        self._kept: list[Any] = []

    def add(self, classes: Iterable[type], functions: Iterable[types.FunctionType]) -> None:
        """Add classes with their bases, and functions, and all that they call by name."""
        for each in (*classes, *functions):
            self._object(each)

    def _object(self, value: Any, names: Iterable[str] = ()) -> None:
        """Add what a global or an attribute of a class is; ``names`` are those that the code uses."""
        value = _unwrapped(value)
        if isinstance(value, PLAIN) or _is_plain(value):
            self._digest.text(_plain_text(value))
        elif isinstance(value, property):
            self._object(value.fget)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._object(part)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            self._module(value, names)
        elif isinstance(value, Tensor):
            self._digest.text(hashlib.sha256(pack({"": value})[0]).hexdigest())
        elif type(value) in _CONTAINERS:
            self._container(value)
        elif isinstance(value, nn.Module) or not is_versioned(type(value).__module__):
            self._instance(value)

    def _container(self, value: Any) -> None:
        if id(value) in self._seen or len(value) > _MANY or isinstance(value, (set, frozenset)):
            return
        self._keep(value)
        for item in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            self._object(item)

    def _instance(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._keep(value)
        self._class(type(value))
        with contextlib.suppress(TypeError, BufferError):  # no buffer, or one with gaps
            self._digest.text(hashlib.sha256(memoryview(value)).hexdigest())
        for key, item in getattr(value, "__dict__", {}).items():
            self._digest.text(key)
            self._object(item)

    def _keep(self, value: Any) -> None:
        self._seen.add(id(value))
        self._kept.append(value)  # an id holds as long as its object

    def _first_time(self, value: Any) -> bool:
        module = getattr(value, "__module__", None)
        self._digest.text(module, value.__qualname__)
        if value in self._seen or is_versioned(module):
            return False
        self._seen.add(value)
        if module is not None:
            self.modules[module] = None
        return True

    def _class(self, value: type) -> None:
        if not self._first_time(value):
            return
        for base in value.__bases__:
            self._class(base)
        for key, item in sorted(vars(value).items()):
            if key not in _NO_CODE:
                self._digest.text(key)
                self._object(item)

    def _function(self, value: types.FunctionType) -> None:
        if not self._first_time(value):
            return
        code = value.__code__
        self._code(code)
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()):
            self._object(default)
        for cell in value.__closure__ or ():
            try:
                self._object(cell.cell_contents)
            except ValueError:  # a variable that has no value yet
                self._digest.text("empty")
        # what a decorator wraps
        self._object(getattr(value, "__wrapped__", None))
        names = sorted(set(_names(code)))
        for name in names:
            if name in value.__globals__:
                self._digest.text(name)
                self._object(value.__globals__[name], names)

    def _module(self, value: types.ModuleType, names: Iterable[str]) -> None:
        """Add what code may use of a module: whatever has a name that the code mentions."""
        if is_versioned(value.__name__):
            return
        for name in names:
            if name in vars(value):
                self._digest.text(value.__name__, name)
                self._object(vars(value)[name])

    def _code(self, code: types.CodeType) -> None:
        self._digest.text(
            code.co_name, code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
            code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
        )  # fmt: skip
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._digest.text(_plain_text(constant))


def _unwrapped(value: Any) -> Any:
    """What a decorator or descriptor is around."""
    while True:
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif callable(value) and not isinstance(value, (type, types.FunctionType)) and hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        else:
            return value


def _names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value is a small container of plain values."""
    if isinstance(value, PLAIN) or value is Ellipsis:
        return True
    if type(value) not in _CONTAINERS or len(value) > _MANY or depth == 0:
        return False
    items = (*value.keys(), *value.values()) if isinstance(value, dict) else value
    return all(_is_plain(item, depth - 1) for item in items)


def _plain_text(value: Any) -> str:
    """A plain value as text; sets in a fixed order."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({sorted(map(_plain_text, value))})"
    if isinstance(value, dict):
        return f"dict({[(_plain_text(key), _plain_text(item)) for key, item in value.items()]})"
    if type(value) in (tuple, list):
        return f"{type(value).__name__}({list(map(_plain_text, value))})"
    return f"{type(value).__name__} {value!r}"
