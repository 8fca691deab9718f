"""Compiled looks see each thing that they look at, and only what differs."""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.cplusplus import supported
from rewrite.result import glance, staleness
from rewrite.result.glance import Glance
from rewrite.result.probe import Probe
from rewrite.result.staleness import Watch
from tests.result.glances import available

needs_compiler = pytest.mark.skipif(not supported(), reason="nothing can be compiled here")


def test_they_are_there_where_they_can_be() -> None:
    assert available() == supported()


@pytest.fixture
def state() -> tuple[dict[str, Tensor], Tensor]:
    assert available()
    tensors = {name: torch.randn(40, 3) for name in "abc"}
    return tensors, tensors["b"]


class Holder:
    def __init__(self, held: dict[str, Tensor]):
        self.dicts, self.placed, self.kept = [held], list(held.values()), list(held.values())


def look(held: dict[str, Tensor], windows: bool = False) -> Glance:
    tensors = list(held.values())
    return Glance([Holder(held)], tensors, Probe(tensors).windows if windows else [])


def assert_sees_writes(model: nn.Linear) -> None:
    watch = Watch(model)
    for _ in range(5):
        assert not watch.changed()
    with torch.no_grad():
        model.weight.mul_(2)
    assert watch.changed()


def write(held: dict[str, Tensor]) -> None:
    held["b"][3, 1] += 1


def replace(held: dict[str, Tensor]) -> None:
    held["b"] = held["b"].clone()


def insert(held: dict[str, Tensor]) -> None:
    held["d"] = held["a"]


def remove(held: dict[str, Tensor]) -> None:
    del held["c"]


def exchange(held: dict[str, Tensor]) -> None:
    held["a"], held["c"] = held["c"], held["a"]


def move(held: dict[str, Tensor]) -> None:
    held["b"].data = held["b"].data.clone()


def shift(held: dict[str, Tensor]) -> None:
    held["b"].data = held["b"].data[1:]


def swap(held: dict[str, Tensor]) -> None:
    torch.utils.swap_tensors(held["b"], torch.randn(40, 3))
    gc.collect()


@needs_compiler
@pytest.mark.parametrize("change", [write, replace, insert, remove, exchange, move, shift, swap])
def test_each_change_is_seen(change: Callable[[Any], None], state: tuple[dict[str, Tensor], Tensor]) -> None:
    held, _ = state
    seen = look(held)
    assert not seen.changed()
    change(held)
    assert seen.changed()
    assert not look(held).changed()


@needs_compiler
def test_bytes_are_seen_where_they_are_watched(state: tuple[dict[str, Tensor], Tensor]) -> None:
    held, written = state
    blind, seen = look(held), look(held, windows=True)
    written.data.mul_(2)
    assert not blind.changed()
    assert seen.changed()
    written.data.div_(2)
    assert not seen.changed()


@needs_compiler
def test_reading_and_gradients_are_no_change() -> None:
    assert available()
    weight = nn.Parameter(torch.randn(5, 5))
    held: dict[str, Any] = {"weight": weight}
    seen = look(held, windows=True)
    (weight @ weight).sum().backward()
    weight.grad = None
    assert not seen.changed()


@needs_compiler
def test_other_mappings_are_left_to_python() -> None:
    assert available()
    with pytest.raises(ValueError, match="something else than a dict"):
        Glance([Holder(OrderedDict(a=torch.zeros(1)))], [], [])
    model = nn.Linear(2, 2)
    model._parameters = OrderedDict(model._parameters)
    assert_sees_writes(model)


class Own(Tensor):
    """A class that may do anything."""


@needs_compiler
@pytest.mark.parametrize("tensor", [torch.zeros(3).as_subclass(Own), torch.eye(3).to_sparse()])
def test_tensors_of_other_kinds_are_left_to_python(tensor: Tensor) -> None:
    assert available()
    with pytest.raises(ValueError, match=r"lie in memory|another way"):
        look({"a": tensor})


@needs_compiler
@pytest.mark.parametrize("move", ["share", "empty", "swap"])
def test_memory_that_is_gone_is_not_read_to_take_one(move: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moves before the first glance is seen by Python, which asks where things lie before it reads."""
    assert available()
    monkeypatch.setattr(staleness, "WORTH", 2)
    model = nn.Linear(1500, 1500)
    watch = Watch(model)
    assert not watch.changed()
    if move == "share":
        model.share_memory()
    elif move == "empty":
        model.weight.untyped_storage().resize_(0)
    else:
        torch.utils.swap_tensors(model.weight, nn.Parameter(torch.randn(1500, 1500)))
        gc.collect()
    assert watch.changed()


@needs_compiler
def test_a_second_tree_that_is_watched_later_is_looked_at() -> None:
    assert available()
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    watch = Watch(model)
    for _ in range(4):
        assert not watch.changed()
    watch.also(other)
    for _ in range(4):
        assert not watch.changed()
    other.weight = nn.Parameter(torch.zeros(2, 2))
    assert watch.changed()


@needs_compiler
def test_nothing_is_kept_alive_by_a_glance_that_is_gone(state: tuple[dict[str, Tensor], Tensor]) -> None:
    held, tensor = state
    before = sys.getrefcount(tensor)
    seen = look(held)
    assert sys.getrefcount(tensor) > before
    del seen
    gc.collect()
    assert sys.getrefcount(tensor) == before


def test_without_a_compiler_python_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glance, "supported", lambda: False)
    monkeypatch.setattr(glance, "_loaded", glance._Loaded())
    model = nn.Linear(2, 2)
    assert_sees_writes(model)
