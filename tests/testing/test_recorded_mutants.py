"""The record of mutants: every rule has evidence, and a sample of what was killed still is."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks import mutation
from rewrite.testing.mutation import PRECONDITION, Baseline, Mutant, Outcome, examine

# making every mutant of every rule takes more than a minute
pytestmark = pytest.mark.slow

EACH = 2
"""So many preconditions of each rule are taken away."""


@cache
def subjects():
    return mutation.subjects()


def preconditions() -> dict[str, Mutant]:
    """Of all rules, by key."""
    found = (mutant for subject in subjects() for mutant in subject.mutants)
    return {mutant.key: mutant for mutant in found if mutant.kind == PRECONDITION}


def exists(test: str) -> bool:
    """Whether a recorded test is still there, under the same name."""
    file, _, name = test.partition("::")
    path = mutation.ROOT / file
    return path.exists() and re.search(rf"^def {name.partition('[')[0]}\(", path.read_text(), re.MULTILINE) is not None


def sample() -> dict[Mutant, str]:
    """Some preconditions of each rule whose code is as it was recorded, with the test that needs them."""
    rows, found, known = mutation.recorded(), dict[Mutant, str](), preconditions()
    for subject in subjects():
        row = rows.get(subject.name)
        if row is not None and row.source == subject.source:
            killed = [known[key] for key, test in row.preconditions.items() if test and exists(test)]
            found.update(
                (mutant, row.preconditions[mutant.key]) for mutant in sorted(killed, key=mutation.chance)[:EACH]
            )
    return found


def test_a_test_still_fails_without_a_precondition():
    """A row whose code has changed is left out: ``python -m benchmarks.mutation`` examines it again."""
    chosen = sample()
    tests = sorted({test.partition("[")[0] for test in chosen.values()})
    if not tests:
        pytest.skip("every row of the record is out of date")
    baseline, *outcomes = examine(list(chosen), tests, mutation.OPTIONS, mutation.ROOT)
    assert isinstance(baseline, Baseline)
    assert not baseline.failed
    names = {mutant.key: str(mutant) for mutant in chosen}
    assert not [names[told.key] for told in outcomes if isinstance(told, Outcome) and not told.fate.dead]


def test_every_rule_has_tests_that_exist():
    for subject in subjects():
        assert subject.mutants
        assert len(subject.tests) > 1
        for test in subject.tests:
            assert (Path(mutation.ROOT) / test).exists() or exists(test)


def test_each_mutant_belongs_to_one_row():
    keys = [mutant.key for subject in subjects() for mutant in subject.mutants]
    assert len(keys) == len(set(keys)) > 1000


def test_mutants_that_are_known_to_change_nothing_exist():
    keys = {mutant.key for subject in subjects() for mutant in subject.mutants}
    assert set(mutation.equivalents()) <= keys
