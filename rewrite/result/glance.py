"""A look at everything that a watch compares, in compiled code, where the machine has a compiler."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewrite.cplusplus import Library, supported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor


def _python() -> list[str]:
    return [f"-I{sysconfig.get_paths()['include']}"]


_LIBRARY = Library(Path(__file__).with_suffix(".cpp"), _python)

_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "glance_new": (_POINTER, []),
    "glance_delete": (None, [_POINTER]),
    "glance_values": (None, [_POINTER, ctypes.py_object]),
    "glance_knows": (ctypes.c_int, [ctypes.py_object, _POINTER]),
    "glance_written": (None, [_POINTER, ctypes.py_object]),
    "glance_placed": (None, [_POINTER, ctypes.py_object]),
    "glance_window": (None, [_POINTER, _POINTER, ctypes.c_int64]),
    "glance_changed": (ctypes.c_int, [_POINTER]),
}


class _Loaded:
    """The functions of the library; None as long as there are none."""

    def __init__(self) -> None:
        self.functions: Any = None
        self._failed = not supported() or not getattr(sys, "_is_gil_enabled", lambda: True)()

    def ready(self) -> bool:
        """Whether they are there; the first to ask has them compiled, and does not wait."""
        if self.functions is None and not self._failed:
            try:
                _LIBRARY.begin()
                if not _LIBRARY.working():
                    _LIBRARY.load(self._load)
            except (OSError, subprocess.SubprocessError):
                self._failed = True
        return self.functions is not None

    def _load(self, path: Path) -> None:
        # a function that is called by PyDLL has the interpreter's lock, which makes it one step for other threads
        library = ctypes.PyDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.functions = library


_loaded = _Loaded()


def ready() -> bool:
    """Whether glances can be taken; the first to ask has their code compiled, and goes on meanwhile."""
    return _loaded.ready()


class Glance:
    """The present state of dicts and tensors, to be compared with a later one.

    Args:
        dicts: their values, in order, are compared by identity.
        versioned: tensors whose version counters are compared.
        placed: tensors whose memory is compared: all have some.
        windows: memory whose bytes are compared, as long as everything else is as it was.

    Raises:
        ValueError: an object is not laid out as the compiled code has it.
    """

    def __init__(
        self,
        dicts: Iterable[dict[str, Any]],
        versioned: Iterable[Tensor],
        placed: Iterable[Tensor],
        windows: Iterable[memoryview],
    ):
        functions = _loaded.functions
        self._changed = functions.glance_changed
        self._at = functions.glance_new()
        # compiled code has addresses alone
        self._kept: Sequence[Any] = [*dicts], [*versioned], [*placed], [*windows]
        weakref.finalize(self, functions.glance_delete, self._at)
        dicts, versioned, placed, windows = self._kept
        if any(type(held) is not dict for held in dicts):
            raise ValueError("a module has its tensors in something else than a dict")
        for tensor in (*versioned, *placed):
            if not functions.glance_knows(tensor, tensor._cdata):
                raise ValueError(f"a {type(tensor).__name__} is laid out in another way")
        for held in dicts:
            functions.glance_values(self._at, held)
        for tensor in versioned:
            functions.glance_written(self._at, tensor)
        for tensor in placed:
            functions.glance_placed(self._at, tensor)
        for window in windows:
            functions.glance_window(self._at, ctypes.addressof(window.obj), len(window))

    def changed(self) -> bool:
        """Whether anything differs."""
        return bool(self._changed(self._at))
