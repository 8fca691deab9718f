"""Structures come back as they were, and reading one imports nothing and calls nothing."""

from __future__ import annotations

import enum
import json
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from rewrite import compat
from rewrite.artifact.trees import tree_data, tree_of
from rewrite.errors import ArtifactError

Pair = namedtuple("Pair", "a b")
_pytree._register_namedtuple(Pair, serialized_type_name="rewrite_test.Pair")
Nameless = namedtuple("Nameless", "a b")


@dataclass
class Point:
    x: Tensor
    y: Tensor | None = None


torch.export.register_dataclass(Point, serialized_type_name="rewrite_test.Point")


class Color(enum.Enum):
    RED = 1


class Word(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


TREES = {
    "leaf": 0, "nothing": (), "call": ((1, 2), {"a": 3}), "list": [1, [2, []]],
    "keys": {"a": 1, 2: 2, None: 3, True: 4},
    "pairs as keys": {("a", 1): 1, (): 2}, "none": (None, None), "ordered": OrderedDict(b=1, a=[2]),
    "default": defaultdict(list, a=1), "no default": defaultdict(None, a=1), "deque": deque([1, 2], maxlen=3),
    "endless deque": deque([1]), "named": Pair(1, (2, 3)), "dataclass": Point(1, None),
    "text": {'"quoted"\n': 1, "__enum__": 2, "": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_structure_comes_back(name: str) -> None:
    leaves, spec = compat.tree_flatten(TREES[name])
    found = tree_of(json.loads(json.dumps(tree_data(spec))))
    assert found == spec
    again = compat.tree_unflatten(leaves, found)
    assert type(again) is type(TREES[name])
    assert again == TREES[name]
    assert repr(again) == repr(TREES[name]), "1 is not True"


@pytest.mark.parametrize(
    "tree",
    [{Color.RED: 1}, {Word.RED: 1}, {Number.ONE: 1}, defaultdict(lambda: 0, a=1), Nameless(1, 2), {b"a": 1}],
    ids=["enum", "text of an enum", "number of an enum", "factory", "named tuple", "bytes"],
)
def test_what_has_no_name_is_refused(tree: Any) -> None:
    with pytest.raises(ArtifactError, match=r"which cannot be saved .* serialized_type_name"):
        tree_data(compat.tree_flatten(tree)[1])


ENUMERATED = {"__enum__": True, "fqn": "rewrite_evil:K", "name": "A"}
ESCAPED = json.dumps(ENUMERATED).replace("__enum__", "\\u005f_enum__")

DATA = {
    "enumerated key": ["builtins.dict", [ENUMERATED], [None]],
    "enumerated key of torch": ["builtins.dict", [{"dict": ENUMERATED}], [None]],
    "context as text": ["builtins.dict", ESCAPED, [None]],
    "torch's own text": json.dumps([1, {"type": "builtins.dict", "context": f"[{ESCAPED}]", "children_spec": []}]),
    "torch's own form": [1, {"type": "builtins.dict", "context": f"[{ESCAPED}]", "children_spec": []}],
    "factory by name": ["collections.defaultdict", [["rewrite_evil", "K"], []], []],
    "factory of a module": ["collections.defaultdict", ["rewrite_evil.K", []], []],
    "factory of torch": [
        "collections.defaultdict",
        {"dict": {"default_factory_module": "rewrite_evil", "default_factory_name": "K", "dict_context": []}}, [],
    ],
    "class of a module": ["rewrite_evil.K", None, [None]],
    "tuple of a module": ["collections.namedtuple", "rewrite_evil.K", [None]],
    "no named tuple": ["collections.namedtuple", "builtins.tuple", [None]],
    "torch's name for none": ["NO_SERIALIZED_TYPE_NAME_FOUND", None, [None]],
    "too few names": ["collections.namedtuple", "rewrite_test.Pair", [None]],
    "too few keys": ["builtins.dict", ["a"], [None, None]],
    "equal keys": ["builtins.dict", [1, True], [None, None]],
    "keys as text": ["builtins.dict", "ab", [None, None]],
    "lists as keys": ["builtins.dict", [[1]], [None]],
    "context of a tuple": ["builtins.tuple", "a", [None]],
    "small deque": ["collections.deque", 1, [None, None]],
    "node": ["builtins.dict", [{"node": "x"}], [None]],
    "number": 3, "text": "builtins.tuple", "empty": [], "kind": [["builtins.tuple"], None, []],
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_nothing_is_imported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewrite_evil.py").write_text("import enum\nclass K(enum.Enum):\n    A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ArtifactError, TypeError, ValueError, KeyError)):
        tree_of(DATA[name])
    assert "rewrite_evil" not in sys.modules
