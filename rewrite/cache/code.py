"""Code as digests: what the forward of a model can run, as it is in memory, with all values that it can reach.

Files alone do not tell: a method may have been replaced since it was imported, and a file may have been edited. The
walk begins at ``forward``. Code reaches the globals that it names, and of every class whose objects it can hold the
methods that some code names, those that Python or a base class calls unnamed, and, where code asks for attributes by
computed names, all of them. Code of torch, of the standard library and of this project goes by its version.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import operator
import sys
import types
from typing import TYPE_CHECKING, Any

from rewrite.cache.fingerprint import DoubtError
from rewrite.cache.payload import text_of
from rewrite.cache.versioned import is_itself, is_original, is_versioned, namespaces, outside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rewrite.cache.fingerprint import Fingerprint

_NOTES = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slotnames__"})
"""What classes have that no call depends on, the last only since an object was copied."""

_MAKERS = frozenset({"__init__", "__new__", "__post_init__", "__set_name__", "__init_subclass__", "__class_getitem__"})
"""Methods that run only where a class is given arguments, or made."""

_COMPUTED = (operator.attrgetter, operator.methodcaller)
"""Like ``getattr``, what finds attributes by names that may be computed."""

_FRAMES = frozenset({"__annotations__", "__globals__", "__subclasses__", "f_back", "f_globals", "f_locals"})
"""Names of what comes from code or classes to what nothing names."""

_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
_MISSING = object()


class Code:
    """Walks through code and adds it to a fingerprint, until all that was met is in it.

    Args:
        digest: what the walk begins with, and adds to.
        names: of the methods that are called from outside.

    Attributes:
        modules: the names of the modules whose code was met.
    """

    def __init__(self, digest: Fingerprint, names: Iterable[str]):
        self.modules: dict[str, None] = {}
        self._digest = digest
        self._names = set(names)
        self._done: set[Any] = set()
        self._every = self._making = False  # whether code gets at all attributes of an object, and at its class

    def walk(self) -> None:
        """Add the code behind the values of the fingerprint.

        Raises:
            DoubtError: code that reaches what cannot be seen.
        """
        self._replaced()
        while True:
            before = len(self._done)
            classes = self._digest.classes
            self._every |= any(each in classes for each in _COMPUTED)
            self._making |= classes.get(type, False)
            for function, name in list(self._digest.functions.items()):
                if self._first_time(function):
                    self._function(function, name)
            for kind, itself in list(self._digest.classes.items()):
                originals = [base for base in kind.__mro__ if base is not object and is_itself(base)]
                for base in kind.__mro__:
                    if base in originals:
                        self._original(base)
                    elif base is not object:
                        self._class(base, itself, originals)
            if len(self._done) == before:
                return

    def _first_time(self, key: Any) -> bool:
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def _replaced(self) -> None:
        """Add the functions that torch's code finds by their names, and all of those that are not torch's own."""
        for space in namespaces():
            for name, value in vars(space).items():
                if not isinstance(value, (type, types.ModuleType)) and callable(value):
                    self._found(value, f"{space.__name__}.{name}")

    # -- classes ------------------------------------------------------------------------------------------------------

    def _class(self, value: type, itself: bool, originals: list[type]) -> None:
        """Add those attributes of a class that can be reached, be it by the code of other bases of a subclass."""
        name = f"{value.__module__}.{value.__qualname__}"
        if self._first_time((value, "class")):
            self._note(value.__module__)
            self._digest.text("class", name, [f"{base.__module__}.{base.__qualname__}" for base in value.__mro__])
            self._digest.text(*sorted(vars(value).keys() - _NOTES))
            self._digest.value_of_class(type(value), f"the metaclass of {name}")
        for key, item in sorted(vars(value).items()):
            if key in _NOTES or (value, key) in self._done:
                continue
            if key in _MAKERS:
                reached = itself or self._making
            elif key.startswith("__") and key.endswith("__"):
                reached = key in self._names or callable(item) or hasattr(item, "__get__")
            else:
                reached = key in self._names or self._every or any(key in vars(base) for base in originals)
            if reached:
                self._done.add((value, key))
                self._digest.text(name, key)
                self._attribute(item, f"{name}.{key}")

    def _original(self, value: type) -> None:
        """Add what a class that goes by its version has, and all of what has been replaced in it."""
        if self._first_time((value, "class")):
            for key, item in sorted(vars(value).items()):
                if key not in _NOTES:
                    self._found(_unwrapped(item), f"{value.__qualname__}.{key}")

    def _found(self, value: Any, name: str) -> None:
        """Add the name of what code of torch or Python finds, or its text; all of a function that is of neither."""
        text = text_of(value)
        if text is None:
            text = f"{type(value).__qualname__} {getattr(value, '__module__', '')} {getattr(value, '__qualname__', '')}"
        self._digest.text(name, text)
        if isinstance(value, types.FunctionType) and not is_original(value):
            self._digest.value(value, name)

    def _attribute(self, item: Any, name: str) -> None:
        if isinstance(item, property):
            for part in (item.fget, item.fset, item.fdel):
                self._digest.value(part, name)
        else:
            self._digest.value(_unwrapped(item), name)

    # -- functions ----------------------------------------------------------------------------------------------------

    def _function(self, value: types.FunctionType, name: str) -> None:
        code, home = value.__code__, value.__globals__.get("__name__")
        if is_original(value):
            self._digest.text("original", home, code.co_qualname, code.co_firstlineno)
            if not is_itself(value):  # a decorator around what may be anything
                self._closure(value, name)
            reason = outside(_Home(home, value.__qualname__))
            if reason:
                raise DoubtError(f"{name} is {reason}")
            return
        if not code.co_filename.startswith("<"):  # else the class that it was generated for has the module
            self._note(home)
        called = f"{home}.{value.__qualname__}"
        self._code(code)
        self._closure(value, called)
        for part in (value.__defaults__, value.__kwdefaults__, vars(value)):
            self._digest.value(part, called)
        for each in _nested(code):
            self._reached(each, value, called)

    def _note(self, module: Any) -> None:
        if not is_versioned(module):
            self.modules[str(module)] = None

    def _closure(self, value: types.FunctionType, name: str) -> None:
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:  # a variable that has no value yet
                self._digest.text("empty")
                continue
            if key == "__class__" and isinstance(held, type):  # what super() needs
                self._digest.value_of_class(held, name)
            else:
                self._digest.value(held, f"{name}.{key}")

    def _reached(self, code: types.CodeType, function: types.FunctionType, name: str) -> None:
        """Add what code names."""
        steps = [step for step in dis.get_instructions(code) if step.opname not in ("EXTENDED_ARG", "CACHE")]
        names = {str(name) for name in code.co_names}
        for constant in code.co_consts:
            if isinstance(constant, str):
                names.update(part for part in constant.split(".") if part.isidentifier())
        frames = names & _FRAMES
        if frames:
            raise DoubtError(f"{name} reads '{min(frames)}', which reaches what cannot be seen")
        self._names |= names
        self._every |= not names.isdisjoint(("__dict__", "__getattribute__"))
        for i, step in enumerate(steps):
            if step.opname in _GLOBALS:
                value, called = _followed(function.__globals__, steps, i)
                self._digest.text(called)
                if value is dataclasses.fields:
                    self._names.add("__dataclass_fields__")
                if value is getattr:  # a name that is a constant of the code is among its names
                    self._every |= not _is_constant(steps[i + 1 : i + 3])
                elif value is not _MISSING:
                    self._digest.value(value, f"{called} in {name}")
            elif step.argval == "__class__":  # as super() takes it, or of which an attribute is taken
                after = steps[i + 1].opname if i + 1 < len(steps) else ""
                self._making |= steps[i - 1].argval != "super" and after not in _ATTRIBUTES
            elif step.opname == "IMPORT_NAME":
                named = [each for part in _nested(function.__code__) for each in part.co_names]
                for module in {step.argval.partition(".")[0]: 0, step.argval: 0}:
                    if steps[i - 2].argval != 0 or module not in sys.modules or not is_versioned(module):
                        raise DoubtError(f"{name} imports '{step.argval}' when it runs")
                    self._imported(sys.modules[module], named, name)

    def _imported(self, module: types.ModuleType, names: list[str], name: str) -> None:
        """Add whatever an imported module has under one of the names that code mentions."""
        for each in names:
            item = vars(module).get(each, _MISSING)
            if item is _MISSING or not self._first_time((module.__name__, each)):
                continue
            self._digest.text(module.__name__, each)
            if isinstance(item, types.ModuleType):
                self._imported(item, names, name)
            else:
                self._digest.value(item, f"{module.__name__}.{each} in {name}")

    def _code(self, code: types.CodeType) -> None:
        self._digest.text(
            code.co_name, code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
            code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
            code.co_exceptiontable.hex(),
        )  # fmt: skip
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._digest.value(constant, code.co_name)


class _Home:
    """What :func:`outside` needs to know of a function whose module another name may hide."""

    def __init__(self, module: Any, qualname: str):
        self.__module__, self.__qualname__ = str(module), qualname


def _followed(space: dict[str, Any], steps: list[dis.Instruction], i: int) -> tuple[Any, str]:
    """What a global is, and its name; of a module the attribute that code goes on to."""
    name = str(steps[i].argval)
    value = space.get(name, vars(builtins).get(name, _MISSING))
    while isinstance(value, types.ModuleType):
        i += 1
        if i == len(steps) or steps[i].opname not in _ATTRIBUTES:
            return value, name
        name = f"{name}.{steps[i].argval}"
        value = _of_module(value, str(steps[i].argval))
    return value, name


def _is_constant(steps: list[dis.Instruction]) -> bool:
    """Whether these are the steps to a variable and to a text."""
    return len(steps) == 2 and steps[0].opname.startswith("LOAD_FAST") and isinstance(steps[1].argval, str) and (
        steps[1].opname == "LOAD_CONST"
    )  # fmt: skip


def _of_module(module: types.ModuleType, name: str) -> Any:
    """An attribute of a module.

    Raises:
        DoubtError: the module computes its attributes.
    """
    if name in vars(module):
        return vars(module)[name]
    if is_versioned(module.__name__) or type(module).__module__ == "torch._ops":
        return getattr(module, name, _MISSING)
    if "__getattr__" in vars(module) or type(module) is not types.ModuleType:
        raise DoubtError(f"the module '{module.__name__}' computes its attributes")
    return _MISSING


def _unwrapped(value: Any) -> Any:
    """What a descriptor is around."""
    while True:
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, functools.cached_property):
            value = value.func
        else:
            return value


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)
