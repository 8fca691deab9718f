"""A look at everything that a watch compares, in compiled code, where the machine has a compiler."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from rewrite.cplusplus import Library, supported
from rewrite.events import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def _python() -> list[str]:
    return [f"-I{sysconfig.get_paths()['include']}"]


_LIBRARY = Library(Path(__file__).with_suffix(".cpp"), _python)

_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "glance_new": (_POINTER, []),
    "glance_delete": (None, [_POINTER]),
    "glance_values": (None, [_POINTER, ctypes.py_object]),
    "glance_written": (ctypes.c_int, [_POINTER, ctypes.py_object, _POINTER]),
    "glance_placed": (ctypes.c_int, [_POINTER, ctypes.py_object, _POINTER]),
    "glance_window": (None, [_POINTER, _POINTER, ctypes.c_int64]),
    "glance_changed": (ctypes.c_int, [_POINTER]),
}


class _Loaded:
    """The functions of the library; None as long as there are none."""

    def __init__(self) -> None:
        self.functions: Any = None
        self._begun = self._failed = False

    def begin(self) -> None:
        """Have them compiled, where that can be done, and go on meanwhile."""
        if self._begun:
            return
        self._begun = True
        self._failed = not supported() or not getattr(sys, "_is_gil_enabled", lambda: True)()
        self._try(_LIBRARY.begin)

    def ready(self) -> bool:
        """Whether they are there."""
        if self.functions is None and self._begun and not self._failed:
            self._try(_LIBRARY.begin)  # in a forked process the compiler is the parent's
            if not _LIBRARY.working():
                self._try(lambda: _LIBRARY.load(self._load))
        return self.functions is not None

    def _try(self, step: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            step()
        except (OSError, subprocess.SubprocessError) as error:
            self._failed = True
            said = getattr(error, "stderr", "") or str(error)
            emit("glance-left", f"changes of weights are looked for by Python: {said.strip()[:500]}", logging.INFO)

    def _load(self, path: Path) -> None:
        # a function that is called by PyDLL has the interpreter's lock, which makes it one step for other threads
        library = ctypes.PyDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.functions = library


_loaded = _Loaded()


def begin() -> None:
    """Have the code of glances compiled, where that can be done, and go on meanwhile."""
    _loaded.begin()


def ready() -> bool:
    """Whether glances can be taken."""
    return _loaded.ready()


class Holder(Protocol):
    """What holds tensors, and keeps them alive."""

    @property
    def dicts(self) -> Sequence[dict[str, Any]]:
        """Their values, in order, are compared by identity."""

    @property
    def placed(self) -> Sequence[Tensor]:
        """Those tensors in them whose memory is compared."""


class Glance:
    """The present state of tensors and of what holds them, to be compared with a later one.

    Args:
        holders: what is held, and where it lies.
        versioned: tensors whose version counters are compared.
        windows: memory whose bytes are compared, as long as everything else is as it was.

    Raises:
        ValueError: something is not laid out as the compiled code has it.
    """

    def __init__(self, holders: Iterable[Holder], versioned: Sequence[Tensor], windows: Sequence[memoryview]):
        functions = _loaded.functions
        self._changed = functions.glance_changed
        self._at = functions.glance_new()
        weakref.finalize(self, functions.glance_delete, self._at)
        self._kept = [*holders], versioned, windows  # compiled code has addresses alone
        for holder in self._kept[0]:
            for held in holder.dicts:
                if type(held) is not dict:
                    raise ValueError("a module has its tensors in something else than a dict")
                functions.glance_values(self._at, held)
            for tensor in holder.placed:
                _require(tensor, functions.glance_placed(self._at, tensor, _impl(tensor)))
        for tensor in versioned:
            _require(tensor, functions.glance_written(self._at, tensor, _impl(tensor)))
        for window in windows:
            memory: Any = window.obj
            functions.glance_window(self._at, ctypes.addressof(memory), len(window))

    def changed(self) -> bool:
        """Whether anything differs."""
        return bool(self._changed(self._at))


def _impl(tensor: Tensor) -> int:
    """The address of torch's own tensor.

    Raises:
        ValueError: it is one of a class that may do anything.
    """
    if type(tensor) not in _PLAIN:
        raise ValueError(f"a {type(tensor).__name__} may have its own way to lie in memory")
    return int(tensor._cdata)


def _require(tensor: Tensor, known: int) -> None:
    if not known:
        raise ValueError(f"a {type(tensor).__name__} is laid out in another way")
