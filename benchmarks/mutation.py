"""How well the tests of each rule tell it from its mutants: every precondition has to be load-bearing.

    python -m benchmarks.mutation                      # the rules whose code has changed since they were examined
    python -m benchmarks.mutation --rule fold-layer-scale
    python -m benchmarks.mutation --survivors          # again, those that nothing has told from the rule
    python -m benchmarks.mutation --preconditions      # of each rule only what is removed from its conditions
    python -m benchmarks.mutation --each 10            # until ten of each rule's are examined
    python -m benchmarks.mutation --minutes 20         # a later run goes on where this one stops
    python -m benchmarks.mutation --list               # the recorded table and what is alive; nothing is run

Each mutant is one small change of one function, made in memory, and is run against the tests of the rules that use the
function: see :mod:`rewrite.testing.mutation`. Writes ``results/mutation.json``, a row for each rule and one for each
module whose code several rules share. The mutants of a rule come in a fixed order, preconditions and guards first and
then by chance, so that a few of the others are a sample of them all. ``mutation_equivalents.toml`` names mutants that
change nothing, and why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pkgutil
import sys
import time
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import passes
from benchmarks import harness
from rewrite.pipeline import rules_of
from rewrite.testing.mutation import (
    PRECONDITION,
    Baseline,
    Mutant,
    Row,
    Source,
    digest,
    examine,
    owners,
    source_of,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rewrite.testing.mutation import Definition

ROOT = Path(__file__).parent.parent
RECORD = harness.RESULTS / "mutation.json"
EQUIVALENTS = Path(__file__).parent / "mutation_equivalents.toml"
OPTIONS = ("-m", "not slow and not corpus")

EVERY = "tests/passes/test_find.py"
"""What is evidence for every module."""
_EXPLAINED = (
    "tests/test_explain.py::test_cause_remedy_and_line_are_named",
    "tests/test_explain.py::test_what_follows_the_remedy_matches",
)
MORE_TESTS = {
    "commute_pooling": ("tests/passes/test_reduction_ties.py",),
    "conv1d_as_conv2d": ("tests/passes/test_layout_choices.py",),
    "convert_layout": ("tests/passes/test_layout_choices.py",),
    "convolve": ("tests/passes/test_layout_choices.py", "tests/passes/test_fft_convolution.py"),
    "explicit_padding": ("tests/passes/test_layout_choices.py",),
    "fold_affine": (
        "tests/passes/test_fold_batch_norm.py",
        "tests/passes/test_fold_bias_map.py",
        "tests/passes/test_fold_layer_scale.py",
        "tests/passes/test_fold_parts.py",
        *_EXPLAINED,
        "tests/passes/test_behind.py",
    ),
    "fold_constants": ("tests/passes/test_weight_program.py",),
    "hoist_pooling": ("tests/passes/test_pooling_sizes.py", "tests/passes/test_reduction_ties.py"),
    "obstruction": ("tests/passes/test_behind.py",),
    "reduction_algebra": (
        "tests/passes/test_degenerate_blocks.py",
        "tests/passes/test_reduction_ties.py",
        "tests/properties/test_reduction_properties.py",
        "tests/passes/test_ranges.py",
    ),
    "select": ("tests/select/test_selection.py",),
    "reparameterize": (*_EXPLAINED, "tests/passes/test_behind.py"),
}
"""What is evidence for a module besides the files that are named after it."""


@dataclass(frozen=True)
class Subject:
    """A rule, or the code of a module that several rules share: what a row is about."""

    name: str
    rules: tuple[str, ...]
    source: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]

    def row(self) -> Row:
        """A row of which nothing is examined."""
        return Row(self.name, self.rules, self.source, self.tests, len(self.mutants))


def subjects() -> list[Subject]:
    """Every rule of :data:`passes.STEPS`, and the modules that several of them use."""
    sources = [source_of(name) for name in _modules()]
    rules = {rule.name: type(rule) for step in passes.STEPS for rule in rules_of(step())}
    classes = {**rules, **{step.name: step for step in passes.STEPS if step.name not in rules}}
    roots = {name: (kind.__module__, kind.__name__) for name, kind in classes.items()}
    users = owners(sources, roots)
    parts: dict[tuple[str, tuple[str, ...]], list[Mutant]] = defaultdict(list)
    for source in sources:
        for mutant in source.mutants():
            using = users[mutant.module, mutant.definition]
            using = using.intersection(rules) or using  # a pass uses what its rules use
            [name] = using if len(using) == 1 else [source.module]
            parts[name, tuple(sorted(using))].append(mutant)
    return [_subject(name, using, mutants, sources, roots) for (name, using), mutants in _merged(parts).items()]


def _merged(parts: dict[tuple[str, tuple[str, ...]], list[Mutant]]) -> dict[tuple[str, tuple[str, ...]], list[Mutant]]:
    """One part for each name, with all that use any of it; rules first."""
    using: dict[str, set[str]] = defaultdict(set)
    mutants: dict[str, list[Mutant]] = defaultdict(list)
    for (name, users), found in parts.items():
        using[name].update(users)
        mutants[name] += found
    names = sorted(mutants, key=lambda name: ("." in name, name))
    return {(name, tuple(sorted(using[name]))): mutants[name] for name in names}


def _subject(
    name: str, using: tuple[str, ...], mutants: list[Mutant], sources: list[Source], roots: dict[str, Definition]
) -> Subject:
    definitions = {(mutant.module, mutant.definition) for mutant in mutants}
    modules = dict.fromkeys([*(mutant.module for mutant in mutants), *(roots[rule][0] for rule in using)])
    tests = dict.fromkeys(test for module in modules for test in tests_of(module))
    if set(tests) == {EVERY}:
        raise SystemExit(f"no test is named after {' or '.join(modules)}; add some to MORE_TESTS in {__file__}")
    # an examination that is stopped early has seen what matters most, and of the rest a sample
    mutants.sort(key=lambda mutant: (mutant.kind != PRECONDITION, mutant.kind != "guard", chance(mutant)))
    return Subject(name, using, digest(sources, definitions), tuple(tests), tuple(mutants))


def chance(mutant: Mutant) -> bytes:
    """What sorts mutants by chance, always in the same order."""
    return hashlib.sha256(mutant.key.encode()).digest()


def _modules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(passes.__path__, "passes.")]


def tests_of(module: str) -> list[str]:
    """The tests of a module: the files named after it or its package, and :data:`MORE_TESTS`."""
    stem = module.split(".")[1]
    named = [
        path
        for folder in ("passes", "properties")
        for path in sorted((ROOT / "tests" / folder).glob(f"test_{stem}*.py"))
    ]
    return [*(str(path.relative_to(ROOT)) for path in named), *MORE_TESTS.get(stem, ()), EVERY]


def equivalents() -> dict[str, str]:
    """The mutants that change nothing, by key, and why."""
    entries = tomllib.loads(EQUIVALENTS.read_text()).get("equivalent", [])
    return {key: entry["because"] for entry in entries for key in entry["mutants"]}


# -- the record -------------------------------------------------------------------------------------------------------


def recorded() -> dict[str, Row]:
    """The rows of the record, by name."""
    if not RECORD.exists():
        return {}
    return {row["name"]: Row.of(row) for row in json.loads(RECORD.read_text())["rows"]}


def save(rows: dict[str, Row], known: Sequence[str]) -> None:
    """Write the rows of rules that exist."""
    harness.save("mutation", [rows[name].to_dict() for name in known if name in rows])


def run(work: dict[str, tuple[Row, list[Mutant]]], until: float) -> Iterator[None]:
    """Examine mutants, and add to their rows what becomes of them; yields after each.

    Args:
        work: rows with the mutants to examine, all with the same tests.
        until: when to stop.
    """
    rows = {mutant.key: row for row, mutants in work.values() for mutant in mutants}
    mutants = {mutant.key: mutant for _, found in work.values() for mutant in found}
    tests = next(iter(work.values()))[0].tests
    for told in examine(list(mutants.values()), tests, OPTIONS, ROOT):
        if isinstance(told, Baseline):
            print(f"{', '.join(work)}: {told.tests} tests in {told.seconds:.0f} s, {len(mutants)} mutants", flush=True)
            for test in told.failed:
                print(f"  fails without a mutant, and is left out: {test}")
            continue
        mutant = mutants[told.key]
        rows[told.key].add(mutant, told)
        if not told.fate.dead:
            print(f"  {told.fate.value}: {mutant.kind} {mutant}", flush=True)
        yield
        if time.monotonic() > until:
            return


def main(arguments: Sequence[str]) -> None:
    """Examine, record, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation")
    parser.add_argument("--rule", action="append", default=[], help="the name of a row; all of it is examined again")
    parser.add_argument("--survivors", action="store_true", help="examine again what is alive")
    parser.add_argument("--preconditions", action="store_true", help="only mutants that remove a precondition")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--each", type=int, help="examine no more of a rule's mutants than so many")
    parser.add_argument("--list", action="store_true", help="print the record and what is alive in it")
    given = parser.parse_args(arguments)
    everything = subjects()
    names = [subject.name for subject in everything]
    if set(given.rule) - set(names):
        parser.error(
            f"no row is called {', '.join(sorted(set(given.rule) - set(names)))}; there are {', '.join(names)}"
        )
    chosen = [subject for subject in everything if not given.rule or subject.name in given.rule]
    rows = recorded()
    until = time.monotonic() + 60 * given.minutes
    if not given.list:
        again = bool(given.rule) and not given.survivors
        for group in _alike(chosen):
            work = {subject.name: _work(subject, rows.get(subject.name), given.survivors, again) for subject in group}
            if given.preconditions:
                work = {name: (row, [mutant for mutant in mutants if mutant.kind == PRECONDITION])
                        for name, (row, mutants) in work.items()}  # fmt: skip
            if given.each is not None:
                work = {name: (row, mutants[: max(0, given.each - row.examined)])
                        for name, (row, mutants) in work.items()}  # fmt: skip
            _examine(work, rows, names, until)
    _list(chosen, rows)


def _alike(chosen: Sequence[Subject]) -> list[list[Subject]]:
    """The subjects with the same tests beside each other, to run these once without a mutant."""
    groups: dict[tuple[str, ...], list[Subject]] = defaultdict(list)
    for subject in chosen:
        groups[subject.tests].append(subject)
    return list(groups.values())


def _work(subject: Subject, row: Row | None, survivors: bool, again: bool) -> tuple[Row, list[Mutant]]:
    """A row, and the mutants that are to be examined for it."""
    if row is None or row.source != subject.source or (again and row.complete):
        return subject.row(), list(subject.mutants)
    row.tests = subject.tests
    alive = [mutant for mutant in subject.mutants if survivors and mutant.key in row.alive]
    return row, [*alive, *subject.mutants[row.examined :]]


def _examine(work: dict[str, tuple[Row, list[Mutant]]], rows: dict[str, Row], names: list[str], until: float) -> None:
    work = {name: (row, mutants) for name, (row, mutants) in work.items() if mutants}
    if not work or time.monotonic() > until:
        return
    for i, _ in enumerate(run(work, until)):
        rows.update({name: row for name, (row, _) in work.items() if row.examined})
        if i % 50 == 0:
            save(rows, names)
    save(rows, names)


def _list(chosen: Sequence[Subject], rows: dict[str, Row]) -> None:
    """The table, what is alive, and what is out of date."""
    same = equivalents()
    print(table([rows[subject.name] for subject in chosen if subject.name in rows], same))
    for subject in chosen:
        row = rows.get(subject.name)
        if row is None or row.source != subject.source:
            print(f"{subject.name}: {'not examined' if row is None else 'examined with other code'}")
            continue
        mutants = {mutant.key: mutant for mutant in subject.mutants}
        for key in row.alive:
            if key not in same:
                mutant = mutants[key]
                print(f"  alive{', not reached' if key in row.unreached else ''}: {mutant.kind} {mutant}")
    known = {mutant.key for subject in chosen for mutant in subject.mutants}
    modules = {key.partition(":")[0] for key in known}
    for key in same:
        if key not in known and key.partition(":")[0] in modules and len(chosen) > 1:
            print(f"no mutant is called so any more: {key}")


if __name__ == "__main__":
    main(sys.argv[1:])
