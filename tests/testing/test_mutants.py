"""Which changes are made of a function, and that they are made in memory."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewrite.testing.mutation import PRECONDITION, Mutant, Source, digest, owners
from rewrite.testing.mutation.swapping import Functions


def mutants(text: str) -> list[Mutant]:
    return list(Source("some.module", "module.py", textwrap.dedent(text)).mutants())


def changes(body: str, head: str = "def f(a, b, c):") -> list[tuple[str, str]]:
    """The kind and the change of every mutant of a function with this body."""
    return [(mutant.kind, mutant.change) for mutant in mutants(f"{head}\n{textwrap.indent(body, '    ')}\n")]


CHANGES: dict[str, list[tuple[str, str]]] = {
    "return a < b": [("comparison", "a < b -> a <= b")],
    "return a is b": [("comparison", "a is b -> a is not b")],
    "return a in (b, c)": [
        ("comparison", "a in (b, c) -> a not in (b, c)"),
        ("term", "a in (b, c) without b"),
        ("term", "a in (b, c) without c"),
    ],
    "return a + b": [("arithmetic", "a + b -> a - b"), ("term", "a + b -> a"), ("term", "a + b -> b")],
    "return a // b": [("arithmetic", "a // b -> a * b"), ("term", "a // b -> a")],
    "return a - 1": [
        ("arithmetic", "a - 1 -> a + 1"),
        ("term", "a - 1 -> a"),
        ("constant", "a - 1 -> a - 2"),
        ("constant", "a - 1 -> a - 0"),
    ],
    "return -a": [("arithmetic", "-a -> a")],
    "return a[0]": [("constant", "a[0] -> a[1]")],
    "return a[-1]": [("constant", "a[-1] -> a[0]"), ("constant", "a[-1] -> a[-2]")],
    "return True": [("constant", "True -> False")],
    "return not a": [("negation", "not a -> a")],
    "return a and b": [("logic", "a and b -> a or b"), ("term", "a and b without a"), ("term", "a and b without b")],
    "return a if b else c": [("branch", "a if b else c -> a"), ("branch", "a if b else c -> c")],
    "return a(b, c)": [("arguments", "a(b, c) -> a(c, b)")],
    "return [x for x in a if x > b]": [
        ("guard", "removed from the comprehension: if x > b"),
        ("negation", "in the comprehension: if x > b -> if not (x > b)"),
        ("comparison", "x > b -> x >= b"),
    ],
    "return any(a)": [("operator", "any(a) -> all(a)")],
    "return isinstance(a, (b, c))": [
        ("term", "isinstance(a, (b, c)) without b"),
        ("term", "isinstance(a, (b, c)) without c"),
    ],
    "return (a, *b)": [("term", "(a, *b) without *b")],
    "return a(aten.sub.Tensor, b, c)": [
        ("operator", "a(aten.sub.Tensor, b, c) -> a(aten.add.Tensor, b, c)"),
        ("term", "a(aten.sub.Tensor, b, c) -> b"),
        ("arguments", "a(aten.sub.Tensor, b, c) -> a(aten.sub.Tensor, c, b)"),
    ],
    "return a(aten.mul.Tensor, b, c)": [
        ("operator", "a(aten.mul.Tensor, b, c) -> a(aten.div.Tensor, b, c)"),
        ("term", "a(aten.mul.Tensor, b, c) -> b"),
        ("term", "a(aten.mul.Tensor, b, c) -> c"),
    ],
    "if a:\n    return b\nreturn c": [("guard", "removed: if a"), ("negation", "if a -> if not (a)")],
    "while a:\n    b()": [("negation", "while a -> while not (a)"), ("statement", "removed: b()")],
    "a = c\nreturn a": [("statement", "removed: a = c")],
    "d = c\nreturn d": [],
    "for x in a:\n    continue": [("branch", "continue -> break")],
    "yield a": [("statement", "removed: yield a")],
}


@pytest.mark.parametrize("body", CHANGES)
def test_what_is_changed(body: str):
    assert changes(body) == CHANGES[body]


LEFT_ALONE = {
    "docstring": '"""Not 1 + 1."""\nreturn a',
    "formatted text": "return f'{a + 1}'",
    "joined text": "return 'a ' + a",
    "exception": "raise ValueError(a + 1)",
    "assertion": "assert a < b\nreturn a",
    "reason and remedy": "return Refusal(str(a + 1), a, str(b + 1))",
    "types": "x: list[1] = a\nreturn x",
    "order of what commutes": "return same_size(a, b), max(a, b)",
    "arguments of unlike kinds": "return a(b, []), a(b, Kind), a(self, b), a(*b, c)",
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name: str):
    found = [change for kind, change in changes(LEFT_ALONE[name]) if kind != "operator"]
    assert not found


REASONS = {
    "if a:\n    return Refusal('no', a)\nreturn None": "removed: if a",
    "if a:\n    return why(a)\nreturn None": "removed: if a",
    "return low(a) or affine.norm_refusal(b)": "low(a) or affine.norm_refusal(b) without affine.norm_refusal(b)",
    "if a:\n    b = Refusal('no', a)\nreturn b": "removed: if a",
    "if a:\n    return Refusal('no', a)\nelse:\n    return low(b)": "never: if a",
}


@pytest.mark.parametrize("body", REASONS)
def test_reasons_for_refusal_are_preconditions(body: str):
    found = [change for kind, change in changes(body, "def f(a, b) -> Refusal | None:") if kind == PRECONDITION]
    assert found == ["f returns None", REASONS[body]]


def test_yes_and_no_are_answers():
    assert changes("return a", "def f(a) -> bool:") == [("result", "f returns True"), ("result", "f returns False")]


def test_a_function_that_answers_so_already_is_no_mutant_of_itself():
    for body in ("return None", '"""Says nothing."""\nreturn None', "return"):
        assert not changes(body, "def f(a) -> Refusal | None:")
    assert changes("return True", "def f(a) -> bool:")[0] == ("result", "f returns False")


def test_names_stay_when_other_lines_move():
    before = mutants("def f(a):\n    return a + 1, a + 1\n")
    after = mutants('"""Text."""\n\nX = 1\n\n\ndef g():\n    return 1\n\n\ndef f(a):\n    return a + 1, a + 1\n')
    keys = [mutant.key for mutant in before]
    assert keys == [mutant.key for mutant in after if mutant.function == "f"]
    assert len(set(keys)) == len(keys)
    assert any(key.endswith("a + 1 -> a - 1 #1") for key in keys)


def test_methods_and_functions_inside_functions():
    found = mutants(
        """
        class A:
            x = 1 + 1

            @property
            def p(self):
                def inner(y=1):
                    return self.q + y
                return inner()
        """
    )
    assert {(mutant.function, mutant.definition, mutant.line) for mutant in found} == {("A.p", "A", 8)}


def test_what_does_not_compile_is_no_mutant():
    """An assignment expression in a comprehension may not stand where the mutant would put it."""
    found = changes("for x in a:\n    b(x)\n    break")
    assert found == [("statement", "removed: b(x)"), ("branch", "break -> continue")]


# -- code in place of code --------------------------------------------------------------------------------------------

MODULE = """
import functools


class Base:
    def value(self):
        return 1


class Held(Base):
    @property
    def size(self):
        return 2 + super().value()

    @staticmethod
    @functools.cache
    def twice(x):
        return x + x

    @functools.cached_property
    def parts(self):
        return [part for part in (1, 2, 3) if part > 1]


def count(n):
    total = 0
    while n > 0:
        if n % 2:
            total += 1
        n -= 1
    return total
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    path = tmp_path / "swapped_module.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Source("swapped_module", str(path), MODULE)
    sys.modules.pop("swapped_module", None)


def exchange(source: Source, change: str) -> Any:
    """The module, imported, with one mutant in it."""
    functions = Functions([source])
    [(mutant, tree)] = [(mutant, tree) for mutant, tree in source.mutants().items() if mutant.change == change]
    functions.exchange(source, tree, mutant.function)
    return importlib.import_module(source.module)


def test_code_is_exchanged_wherever_a_function_is_held(source: Source):
    module = importlib.import_module(source.module)
    held = module.Held()
    assert (held.size, held.twice(3), held.parts) == (3, 6, [2, 3])
    exchange(source, "2 + super().value() -> 2 - super().value()")
    assert held.size == 1
    exchange(source, "x + x -> x - x")
    assert held.twice(4) == 0
    exchange(source, "part > 1 -> part >= 1")
    assert module.Held().parts == [1, 2, 3]
    assert source.text == Path(source.path).read_text()


def test_one_function_is_changed(source: Source):
    module = exchange(source, "n > 0 -> n >= 0")
    assert module.count.__code__.co_filename == source.path
    assert module.Held().size == 3


def test_statements_are_noted_that_a_call_comes_to(source: Source):
    functions = Functions([source])
    reached = functions.watch([source])
    module = importlib.import_module(source.module)
    lines = source.text.splitlines()
    places = {lines[mutant.line - 1].strip(): (mutant.module, mutant.statement) for mutant in source.mutants()}
    assert module.count(2) == 1
    assert {places["while n > 0:"], places["total += 1"]} <= reached
    assert places["return x + x"] not in reached
    reached.clear()
    assert module.count(0) == 0
    assert places["while n > 0:"] in reached
    assert places["total += 1"] not in reached


# -- who uses what ----------------------------------------------------------------------------------------------------

FILES = {
    "kit": "from kit.rules import First as First\n",
    "kit.rules": """
        from kit import common
        from kit.common import twice as double

        class First:
            def find(self):
                return common.once(1)

        class Second:
            def find(self):
                return double(1), own(2)

        def own(x):
            return x
    """,
    "kit.common": """
        def once(x):
            return base(x)

        def twice(x):
            return base(x) + base(x)

        def base(x):
            return x

        def idle(x):
            return x
    """,
    "kit.later": """
        from .common import idle
        from . import First

        def third():
            return First(), idle(1)
    """,
}


def test_rules_own_what_they_use():
    sources = [
        Source(name, f"{name.replace('.', '/')}{'/__init__' if name == 'kit' else ''}.py", textwrap.dedent(text))
        for name, text in FILES.items()
    ]
    roots = {"first": ("kit.rules", "First"), "second": ("kit.rules", "Second"), "third": ("kit.later", "third")}
    assert {place[1]: sorted(names) for place, names in owners(sources, roots).items()} == {
        "First": ["first", "third"],
        "Second": ["second"],
        "own": ["second"],
        "once": ["first", "third"],
        "twice": ["second"],
        "base": ["first", "second", "third"],
        "idle": ["third"],
        "third": ["third"],
    }


def test_a_digest_tells_other_code_and_not_other_comments():
    def of(text: str) -> str:
        return digest([Source("a", "a.py", text)], [("a", "f")])

    assert of("def f():\n    return (1 +\n        2)  # three\n") == of("X = 1\ndef f(): return 1 + 2")
    assert of("def f(): return 1 + 2") != of("def f(): return 1 + 3")
