"""The mutants of a module, in a fixed order, each with a name that survives edits elsewhere in the file."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from rewrite.testing.mutation.edits import Edit, edits, is_refusing, results, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType

Function = ast.FunctionDef | ast.AsyncFunctionDef
Step = tuple[str, int | None]
"""One step down a tree: a field, and the place in it where it is a list."""
Place = tuple[Edit, list[Step], ast.AST]
"""An edit, the way down from the function to the node that it replaces, and that node."""

Tree = TypeVar("Tree", bound=ast.AST)


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        module: its name, dotted.
        function: the qualified name of the function or method, the outermost one where functions are nested.
        line: where the change is, from 1.
        kind: what sort of change, see :func:`~rewrite.testing.mutation.edits.edits`.
        change: what it does, in a line.
        number: counts the same changes of one function, from 0.
        statement: the number of the statement that is changed or holds the change, see :func:`statements`.
        definition: the name of the function or class of the module that it belongs to.
    """

    module: str
    function: str
    line: int
    kind: str
    change: str
    number: int
    statement: int
    definition: str

    @property
    def key(self) -> str:
        """The mutant's name. It stays the same while its function stays the same."""
        again = f" #{self.number}" if self.number else ""
        return f"{self.module}:{self.function} | {self.kind} | {self.change}{again}"

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.function}: {self.change}"


@dataclass(frozen=True)
class Source:
    """The source of a module, and its mutants.

    Attributes:
        module: its name, dotted.
        path: its file, which compiled code is said to come from.
        text: the source.
    """

    module: str
    path: str
    text: str

    def tree(self) -> ast.Module:
        """The syntax tree, a new one each time."""
        return ast.parse(self.text, self.path)

    def compile(self, tree: ast.Module) -> CodeType:
        """The code of a tree made from this source."""
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def mutants(self) -> dict[Mutant, ast.Module]:
        """Every mutant with its tree; what does not compile, changes nothing, or equals an earlier one is left out."""
        found: dict[Mutant, ast.Module] = {}
        tree = self.tree()
        numbers = statements(tree)
        for definition, name, function, way in _functions(tree):
            seen = {ast.dump(function)}
            counts: dict[tuple[str, str], int] = {}
            for edit, down, node in _places(function):
                mutated = _replaced(function, down, edit.new)
                if ast.dump(mutated) in seen:
                    continue
                seen.add(ast.dump(mutated))
                whole = _replaced(tree, way, mutated)
                if not self._compiles(whole):
                    continue
                number = counts.get((edit.kind, edit.change), 0)
                counts[edit.kind, edit.change] = number + 1
                where = _statement(function, down)
                line = getattr(node, "lineno", where.lineno)
                found[Mutant(self.module, name, line, edit.kind, edit.change, number, numbers[where], definition)] = (
                    whole
                )
        return found

    def _compiles(self, tree: ast.Module) -> bool:
        try:
            self.compile(tree)
        except (SyntaxError, ValueError):
            return False
        return True


def statements(tree: ast.Module) -> dict[ast.stmt, int]:
    """The number of every statement of a module; two trees of one source have the same numbers."""
    return {node: i for i, node in enumerate(node for node in ast.walk(tree) if isinstance(node, ast.stmt))}


def _functions(tree: ast.Module) -> Iterator[tuple[str, str, Function, list[Step]]]:
    """Functions and methods, not those inside functions, each with its top definition, its name and its place."""

    def inside(body: Sequence[ast.stmt], top: str, prefix: str, way: list[Step]) -> Iterator[Any]:
        for i, node in enumerate(body):
            here: list[Step] = [*way, ("body", i)]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield top or node.name, prefix + node.name, node, here
            elif isinstance(node, ast.ClassDef):
                yield from inside(node.body, top or node.name, f"{prefix}{node.name}.", here)

    return inside(tree.body, "", "", [])


def _places(function: Function) -> Iterator[Place]:
    """Every edit of a function, with the way down to the node that it replaces."""
    for edit in results(function):
        yield edit, [], function
    refusing, again = is_refusing(function), _reassignments(function)
    for i, statement in enumerate(function.body):
        if i or not _is_docstring(statement):
            yield from _below(statement, [("body", i)], refusing, again)


def _below(node: ast.AST, way: list[Step], refusing: bool, again: set[ast.stmt]) -> Iterator[Place]:
    for edit in edits(node, refusing):
        yield edit, way, node
    if node in again:
        yield Edit("statement", f"removed: {text(node)}", None), way, node
    for step, child in _children(node):
        for edit, down, place in _below(child, [*way, step], refusing, again):
            if place is child and edit.new is None and _is_only(node, child):
                continue  # without its only statement an `if` might as well go
            if place is child and isinstance(node, ast.Subscript) and _is_last_for_first(child, edit):
                continue
            yield _told(edit, node, step) if place is child else edit, down, place


def _is_last_for_first(child: ast.AST, edit: Edit) -> bool:
    """Whether an index becomes -1 for 0: another place altogether, and often the same."""
    return isinstance(child, ast.Constant) and child.value == 0 and isinstance(edit.new, ast.UnaryOp)


def _told(edit: Edit, parent: ast.AST, step: Step) -> Edit:
    """A change of a number, told with what it stands in."""
    if edit.kind != "constant" or isinstance(parent, ast.stmt):
        return edit
    return replace(edit, change=f"{text(parent)} -> {text(_replaced(parent, [step], edit.new))}")


def _children(node: ast.AST) -> Iterator[tuple[Step, ast.AST]]:
    for field, child in ast.iter_fields(node):
        if field in _skipped(node):
            continue
        if isinstance(child, ast.AST):
            yield (field, None), child
        elif isinstance(child, list):
            for i, item in enumerate(child):
                if isinstance(item, ast.AST) and not _is_message(node, field, i):
                    yield (field, i), item


def _is_only(node: ast.AST, child: ast.AST) -> bool:
    return isinstance(node, ast.If) and node.body == [child] and not node.orelse


def _reassignments(function: Function) -> set[ast.stmt]:
    """The assignments to names that have a value already."""
    arguments = function.args
    known = {arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    found: set[ast.stmt] = set()
    for node in _in_order(function.body):
        if isinstance(node, ast.Assign):
            names = {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            plain = all(isinstance(target, (ast.Name, ast.Tuple)) for target in node.targets)
            if plain and names <= known:
                found.add(node)
            known |= names
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            known.add(node.target.id)
    return found


def _in_order(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements and those inside them, as they stand in the file."""
    for node in body:
        yield node
        for field in ("body", "handlers", "orelse", "finalbody"):
            for inner in getattr(node, field, []):
                yield from _in_order(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _skipped(node: ast.AST) -> tuple[str, ...]:
    """The fields of a node whose content is for people, or for type checkers."""
    match node:
        case ast.JoinedStr():
            return ("values",)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return ("operand",)
        case ast.Raise():
            return ("exc", "cause")
        case ast.Assert():
            return ("test", "msg")
        case ast.AnnAssign():
            return ("target", "annotation")
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return ("decorator_list", "returns", "args")
        case ast.Lambda():
            return ("args",)
        case ast.Call(func=ast.Name(id="Refusal")) | ast.Call(func=ast.Name(id="zip")):
            return ("keywords",)
    return ()


def _is_message(node: ast.AST, field: str, i: int) -> bool:
    """Whether an argument is the reason or the remedy of a refusal."""
    return isinstance(node, ast.Call) and field == "args" and i != 1 and getattr(node.func, "id", "") == "Refusal"


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _statement(function: Function, way: list[Step]) -> ast.stmt:
    """The innermost statement on a way down; of a function as a whole, its first one."""
    node: ast.AST = function
    innermost: ast.stmt = function
    for field, i in way:
        child = getattr(node, field)
        node = child if i is None else child[i]
        if isinstance(node, ast.stmt):
            innermost = node
    if innermost is function:
        return next((node for node in function.body if not _is_docstring(node)), function.body[0])
    return innermost


def _replaced(root: Tree, way: Sequence[Step], new: ast.AST | None) -> Tree:
    """A copy of a tree in which ``new`` stands at the end of a way; the rest of both trees is shared."""
    if not way:
        assert isinstance(new, type(root))
        return new
    (field, i), rest = way[0], way[1:]
    changed = copy.copy(root)
    child = getattr(root, field)
    old = child if i is None else child[i]
    if rest:
        part: ast.AST = _replaced(old, rest, new)
    elif new is None:
        part = ast.copy_location(ast.Pass(), old)
    else:
        part = ast.copy_location(copy.copy(new), old) if not hasattr(new, "lineno") else new
    setattr(changed, field, part if i is None else [part if j == i else other for j, other in enumerate(child)])
    return changed
