"""A rule of four lines and its tests, of which it is known what they tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewrite.errors import InputError
from rewrite.testing.mutation import Baseline, Fate, Mutant, MutationError, Outcome, Row, examine, mutants_of, table

RULE = '''
import torch
from dataclasses import dataclass

from rewrite.ops import Product, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class Doubling(Rule):
    """``2 * x`` is ``x + x``."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        for node in dirty:
            product = view_as(node, Product)
            refusal = None if product is None else factor_refusal(product)
            if refusal is not None:
                yield Miss(self.name, node, refusal)
            elif product is not None:
                yield Match(self, (node,), (node,), {"x": product.left})

    def rewrite(self, match, g):
        return g(aten.add.Tensor, match.x, match.x)


def factor_refusal(product) -> Refusal | None:
    if product.right != 2:
        return Refusal("the factor is not two", product.node, "multiply by two")
    if product.divided:
        return Refusal("it is divided", product.node, "multiply")
    return None


def halvings(n):
    found = 0
    while n > 1:
        n = n // 2
        found = found + 1
    return found


def never_called(n):
    return n + 1
'''

TESTS = """
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from doubling import Doubling, halvings
from rewrite.driver import Driver
from rewrite.trace import capture
from rewrite.verify import MatchVerifier


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def commits(factor):
    graph = capture(Times(factor).eval(), (torch.randn(3),)).graph
    return len(Driver(graph, MatchVerifier()).run([Doubling()])[0].commits)


def test_two_is_doubled():
    assert commits(2) == 1


def test_three_is_not():
    assert commits(3) == 0


@given(st.integers(0, 7))
def test_halvings(n):
    assert halvings(2 ** n) == n


def test_of_something_else():
    assert True


def test_that_fails_as_it_is():
    assert halvings(8) == 4


@pytest.mark.slow
def test_that_is_left_out():
    assert halvings(0) == halvings(-1) == 7
"""

SETTINGS = "[pytest]\nmarkers = slow\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "doubling.py").write_text(RULE)
    (tmp_path / "test_doubling.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def told(root: Path, wanted: list[Mutant]) -> tuple[Baseline, list[Outcome]]:
    baseline, *outcomes = examine(wanted, ["test_doubling.py"], ["-m", "not slow"], root, grace=1.0)
    assert isinstance(baseline, Baseline)
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    return baseline, outcomes  # type: ignore[return-value]


WANTED = {
    "factor_refusal returns None": Fate.REJECTED,
    "removed: if product.right != 2": Fate.REJECTED,
    "product.right != 2 -> product.right == 2": Fate.KILLED,
    "removed: if product.divided": Fate.SURVIVED,
    "g(aten.add.Tensor, match.x, match.x) -> g(aten.sub.Tensor, match.x, match.x)": Fate.KILLED,
    "None if product is None else factor_refusal(product) -> factor_refusal(product)": Fate.KILLED,
    "n > 1 -> n > 0": Fate.KILLED,
    "removed: n = n // 2": Fate.TIMEOUT,
    "found + 1 -> found + 2": Fate.KILLED,
    "n + 1 -> n - 1": Fate.UNREACHED,
}


def test_what_becomes_of_mutants(root: Path):
    mutants = {mutant.change: mutant for mutant in mutants_of(["doubling"])}
    baseline, outcomes = told(root, [mutants[change] for change in WANTED])
    assert (baseline.tests, baseline.failed) == (4, ("test_doubling.py::test_that_fails_as_it_is",))
    changes = {mutant.key: change for change, mutant in mutants.items()}
    assert {changes[outcome.key]: outcome.fate for outcome in outcomes} == WANTED
    by_change = {changes[outcome.key]: outcome for outcome in outcomes}
    refused = by_change["removed: if product.right != 2"]
    assert refused.test.endswith("::test_three_is_not")
    assert refused.rejected
    assert "differs" in refused.error or "error" in refused.error
    wrong = by_change["g(aten.add.Tensor, match.x, match.x) -> g(aten.sub.Tensor, match.x, match.x)"]
    assert (wrong.test, wrong.rejected, wrong.raised) == ("test_doubling.py::test_two_is_doubled", True, False)
    assert wrong.error.startswith("assert 0 == 1")
    assert by_change["None if product is None else factor_refusal(product) -> factor_refusal(product)"].raised
    assert by_change["found + 1 -> found + 2"].test.endswith("::test_halvings")
    assert (root / "doubling.py").read_text() == RULE


def test_a_row_counts_and_can_be_completed_later(root: Path):
    mutants = {mutant.change: mutant for mutant in mutants_of(["doubling"])}
    wanted = [mutants[change] for change in WANTED]
    made = [
        Outcome(mutant.key, fate, "" if not fate.dead else "test", rejected=fate is Fate.REJECTED)
        for mutant, fate in zip(wanted, WANTED.values(), strict=True)
    ]
    row = Row("doubling", ("doubling",), "hash", ("test_doubling.py",), len(wanted))
    for mutant, outcome in zip(wanted[:-1], made[:-1], strict=True):
        row.add(mutant, outcome)
    assert not row.complete
    row = Row.of(json.loads(json.dumps(row.to_dict())))
    row.add(wanted[-1], made[-1])
    assert row.complete
    assert (row.dead, row.rejected, row.alone, row.timeouts) == (8, 2, 2, 1)
    assert row.alive == [mutants["removed: if product.divided"].key, mutants["n + 1 -> n - 1"].key]
    assert row.score([]) == 0.8
    assert row.score([mutants["n + 1 -> n - 1"].key, "another"]) == 8 / 9
    assert sorted(row.preconditions.values()) == ["", "test", "test"]
    text = table([row], row.alive)
    assert "3/3" in text
    assert "100.0%" in text
    survivor = mutants["removed: if product.divided"]
    row.add(survivor, Outcome(survivor.key, Fate.KILLED, "new test"))
    assert (row.examined, row.dead, row.survived) == (10, 9, [])
    assert row.preconditions[survivor.key] == "new test"


def test_tests_that_cannot_be_run_are_an_error(root: Path):
    mutants = mutants_of(["doubling"])[:1]
    (root / "test_doubling.py").write_text("import missing_module\n")
    with pytest.raises(MutationError, match="missing_module"):
        list(examine(mutants, ["test_doubling.py"], (), root))
    with pytest.raises(MutationError, match=r"no_such_file\.py"):
        list(examine(mutants, ["no_such_file.py"], (), root))


def test_modules_without_source_are_an_error():
    with pytest.raises(InputError, match="no source"):
        mutants_of(["no_such_module"])
    with pytest.raises(InputError, match="no source"):
        mutants_of(["math"])
