"""Objects that users name: ``package.module:attribute`` and ``path/to/file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewrite.errors import InputError
from rewrite.names import nearest
from rewrite.trace.errors import first_line, place, user_line

if TYPE_CHECKING:
    from types import ModuleType


def named(text: str) -> Any:
    """The object of a name; its module is imported, with the current directory first on the path, or its file run.

    Raises:
        InputError: no such module, file or attribute, or importing it fails.
    """
    module, colon, attribute = text.rpartition(":")
    if not colon or not module or not attribute:
        raise InputError(f"'{text}' names no object; write package.module:NAME or path/to/file.py:NAME")
    found = _file(Path(module)) if module.endswith(".py") else _module(module)
    try:
        return operator.attrgetter(attribute)(found)
    except AttributeError:
        names = [name for name in dir(found) if not name.startswith("_")]
        raise InputError(f"'{module}' has no '{attribute}'{nearest(attribute, names)}") from None


def raised(what: str, error: BaseException) -> InputError:
    """What the user's code raised, as one sentence with the line."""
    return InputError(f"{what} raises {type(error).__name__}{place(user_line(error))}: {first_line(error)}")


def _module(name: str) -> ModuleType:
    _search(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise raised(f"importing '{name}'", error) from error
        remedy = f"run from the directory that holds it, or install it; a file is named {name.replace('.', '/')}.py"
        raise InputError(f"there is no module '{error.name}'; {remedy}") from error
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise raised(f"importing '{name}'", error) from error


def _file(path: Path) -> ModuleType:
    """A file as a module that finds those beside it, as ``python path`` does."""
    if not path.is_file():
        raise InputError(f"there is no file '{path}'; give a path to a Python file")
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent}"
    _search(str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise raised(f"running '{path}'", error) from error
    return module


def _search(directory: str) -> None:
    """Look for modules in a directory first. This project's are imported already, so none takes their names."""
    if directory not in sys.path:
        sys.path.insert(0, directory)
