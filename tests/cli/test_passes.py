"""``torch-rewrite passes``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import passes
from rewrite import Fidelity, Rule, pipeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Strange(Rule):
    """Finds nothing in graphs with ``[a]`` node.

    It is not from here.
    """

    fidelity = Fidelity.NORMWISE
    limit: int
    text: str = "a"

    def find(self, graph: Any, dirty: Iterable[Any]) -> Iterator[Any]:
        yield from ()


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plugged.in", SimpleNamespace(Strange=Strange))
    point = EntryPoint("strange", "plugged.in:Strange", pipeline.ENTRY_POINTS)
    monkeypatch.setattr(pipeline, "entry_points", lambda group: (point,))


def test_every_registered_step_and_its_rules(run: Any) -> None:
    found = run("passes", "--json").data
    assert found["default"] == str(passes.default_pipeline())
    steps = {step["name"]: step for step in found["steps"]}
    assert set(steps) == set(passes.registry().steps)
    assert steps["reparameterize"]["kind"] == "pass"
    assert steps["reparameterize"]["options"] == {"max_kernel": "None"}
    merge = next(rule for rule in steps["reparameterize"]["rules"] if rule["name"] == "merge-branches")
    assert merge["fidelity"] == ["elementwise"]
    assert merge["source"] == "passes.reparameterize.rule.MergeBranches"
    assert all(entry["summary"] for step in found["steps"] for entry in (step, *step["rules"]))


def test_the_table(run: Any) -> None:
    lines = run("passes").out.splitlines()
    assert lines[0].split() == ["step", "fidelity", "what", "it", "does,", "and", "its", "options"]
    assert max(map(len, lines)) <= 100
    last = next(i for i, line in enumerate(lines) if line.startswith("default pipeline  "))
    assert " ".join(" ".join(lines[last:]).split()) == f"default pipeline {passes.default_pipeline()}"
    assert sum(line.lstrip().startswith("fold-batch-norm-after ") for line in lines) == 3
    assert sum("as above" in line for line in lines) >= 1


@pytest.mark.usefixtures("plugged")
def test_plug_ins_are_among_them(run: Any) -> None:
    step = next(step for step in run("passes", "--json").data["steps"] if step["name"] == "strange")
    assert step["kind"] == "rule"
    assert step["fidelity"] == ["normwise"]
    assert step["options"] == {"limit": None, "text": "'a'"}
    assert step["summary"] == "Finds nothing in graphs with `[a]` node."
    out = run("passes").out
    assert "limit=(required), text='a'" in out
    assert "with `[a]` node." in out
    assert f"from {__name__}.Strange" in out


@pytest.mark.filterwarnings("default")
def test_a_broken_plug_in_is_a_warning(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "no.such.module:Thing", pipeline.ENTRY_POINTS)
    monkeypatch.setattr(pipeline, "entry_points", lambda group: (point,))
    warning = run("passes", "-q").err
    assert warning == "warning: plug-in 'mine' (no.such.module:Thing) does not load: No module named 'no'\n"
