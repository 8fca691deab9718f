"""Which rules use a function or class, read from the source."""

from __future__ import annotations

import ast
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rewrite.testing.mutation.mutants import Source

Definition = tuple[str, str]
"""A module, and the name of a function or class at its top."""


def owners(sources: Iterable[Source], roots: Mapping[str, Definition]) -> dict[Definition, frozenset[str]]:
    """For each function and class of some modules the names of the roots that use it, directly or through others.

    Args:
        sources: the modules.
        roots: by name a function or class, such as the class of a rule.
    """
    modules = {source.module: _Names(source) for source in sources}
    found: dict[Definition, set[str]] = {
        (name, definition): set() for name, module in modules.items() for definition in module.definitions
    }
    for root, start in roots.items():
        stack = [start]
        while stack:
            place = stack.pop()
            if place in found and root not in found[place]:
                found[place].add(root)
                stack.extend(modules[place[0]].uses(place[1], modules))
    return {place: frozenset(names) for place, names in found.items()}


def digest(sources: Iterable[Source], definitions: Iterable[Definition]) -> str:
    """A hash of the code of some definitions, whatever their comments and line breaks are."""
    trees = {source.module: _Names(source).definitions for source in sources}
    texts = [f"{module}:{name}\n{ast.unparse(trees[module][name])}" for module, name in sorted(definitions)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


class _Names:
    """What the names of a module stand for."""

    def __init__(self, source: Source):
        tree = source.tree()
        self.module = source.module
        self.package = source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
        self.definitions: dict[str, ast.stmt] = {
            node.name: node for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        }  # fmt: skip
        self.imported: dict[str, tuple[str, str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                self._import_from(node)
            elif isinstance(node, ast.Import):
                self.imported.update({name.asname: (name.name, "") for name in node.names if name.asname})

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            base = self.package.rsplit(".", node.level - 1)[0] if node.level > 1 else self.package
            module = f"{base}.{module}" if module else base
        self.imported.update({name.asname or name.name: (module, name.name) for name in node.names})

    def uses(self, definition: str, modules: Mapping[str, _Names]) -> list[Definition]:
        """The definitions of any of the modules that one of this module names."""
        found = []
        for node in ast.walk(self.definitions[definition]):
            if isinstance(node, ast.Name):
                found.append(self._resolved(node.id, modules))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = self._module(node.value.id, modules)
                found.append(None if module is None else modules[module]._resolved(node.attr, modules))
        return [place for place in found if place is not None]

    def _module(self, name: str, modules: Mapping[str, _Names]) -> str | None:
        module, attribute = self.imported.get(name, ("", ""))
        path = f"{module}.{attribute}".strip(".")
        return path if path in modules else None

    def _resolved(self, name: str, modules: Mapping[str, _Names]) -> Definition | None:
        """What a name stands for, also where it is passed on by other modules."""
        if name in self.definitions:
            return self.module, name
        module, original = self.imported.get(name, ("", ""))
        return modules[module]._resolved(original, modules) if module in modules else None
