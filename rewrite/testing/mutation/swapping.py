"""Changed code in place of a function's own, in the running process; files are never written."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
from collections import defaultdict
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

from rewrite.testing.mutation.mutants import Source, statements

if TYPE_CHECKING:
    from collections.abc import Iterable

_REACHED = "__reached__"


class Functions:
    """The functions of some modules, wherever they are held: in classes, behind decorators, as defaults.

    The code of a function is exchanged, so that everything that has imported it runs the new code.

    Args:
        sources: the modules; they are imported.
    """

    def __init__(self, sources: Iterable[Source]):
        self._modules = {source.path: importlib.import_module(source.module) for source in sources}
        self._found: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        for held in gc.get_objects():
            # not `isinstance`, which asks objects that pose as others
            if type(held) is FunctionType and held.__code__.co_filename in self._modules:
                self._found[_place(held.__code__)].append(held)

    def exchange(self, source: Source, tree: ast.Module, only: str | None = None) -> None:
        """Give the functions of a module the code of a tree.

        Args:
            source: the module.
            tree: made from its source.
            only: the qualified name of the one function that is changed; all of them if None.
        """
        for code in _function_codes(source.compile(tree)):
            if only is None or code.co_qualname == only:
                for function in self._found[_place(code)]:
                    function.__code__ = code

    def watch(self, sources: Iterable[Source]) -> set[tuple[str, int]]:
        """Let the functions of the modules note the statements that they come to: module and number of each."""
        reached: set[tuple[str, int]] = set()
        for source in sources:
            setattr(self._modules[source.path], _REACHED, reached)
            self.exchange(source, _noting(source))
        return reached


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _function_codes(code: CodeType) -> list[CodeType]:
    """The code of functions and methods, not of those inside functions."""
    found = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inside = constant.co_flags & inspect.CO_OPTIMIZED  # a function's; a class body has names, not slots
            found += [constant] if inside else _function_codes(constant)
    return found


def _noting(source: Source) -> ast.Module:
    """The module with a note before each statement of its functions."""
    tree = source.tree()
    numbers = statements(tree)
    for function in [node for node in numbers if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]:
        for node in ast.walk(function):
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(node, field, None)
                if isinstance(inner, list) and not any(part not in numbers for part in inner):
                    noted = [part for old in inner for part in (_note(source.module, numbers[old], old), old)]
                    setattr(node, field, noted)
    return tree


def _note(module: str, number: int, at: ast.stmt) -> ast.stmt:
    note = ast.parse(f"{_REACHED}.add(({module!r}, {number}))").body[0]
    for node in ast.walk(note):
        ast.copy_location(node, at)
    return note
