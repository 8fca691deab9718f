"""What is recorded of a rule's mutants: counts, what survived, and what killed those without a precondition."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rewrite.testing.mutation.edits import PRECONDITION
from rewrite.testing.mutation.outcome import Fate, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from rewrite.testing.mutation.mutants import Mutant


@dataclass
class Row:
    """A rule, or code that several rules share, and what became of its mutants.

    Attributes:
        name: of the rule, or of the module whose code several rules share.
        rules: those that use the code.
        source: a hash of the code; a row with another one is out of date.
        tests: what was run.
        mutants: how many there are.
        examined: how many were examined, in their order.
        dead: how many of those the evidence tells from the rule.
        rejected: in how many verification rejected a rewrite that it had accepted.
        alone: in how many of those no test failed.
        raised: how many made the rule raise an exception.
        timeouts: how many made a test endless, or ended the process.
        survived: the keys of those with which all tests pass.
        unreached: the keys of those that no test comes to.
        preconditions: for each mutant without a precondition the test that told it from the rule, '' if none did.
        seconds: what it took.
    """

    name: str
    rules: tuple[str, ...]
    source: str
    tests: tuple[str, ...]
    mutants: int
    examined: int = 0
    dead: int = 0
    rejected: int = 0
    alone: int = 0
    raised: int = 0
    timeouts: int = 0
    survived: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    preconditions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def alive(self) -> list[str]:
        """The keys of those that nothing tells from the rule."""
        return [*self.survived, *self.unreached]

    @property
    def complete(self) -> bool:
        """Whether every mutant was examined."""
        return self.examined == self.mutants

    def add(self, mutant: Mutant, outcome: Outcome) -> None:
        """Count the next mutant, or one that was alive so far."""
        again = [keys for keys in (self.survived, self.unreached) if mutant.key in keys]
        for keys in again:
            keys.remove(mutant.key)
        self.examined += not again
        self.dead += outcome.fate.dead
        self.rejected += outcome.rejected
        self.alone += outcome.fate is Fate.REJECTED
        self.raised += outcome.raised
        self.timeouts += outcome.fate is Fate.TIMEOUT
        self.seconds = round(self.seconds + outcome.seconds, 1)
        if not outcome.fate.dead:
            (self.survived if outcome.fate is Fate.SURVIVED else self.unreached).append(mutant.key)
        if mutant.kind == PRECONDITION:
            self.preconditions[mutant.key] = outcome.test

    def score(self, equivalent: Collection[str]) -> float:
        """The part of the examined mutants that is dead, without those that are known to change nothing."""
        counted = self.examined - len(set(equivalent).intersection(self.alive))
        return self.dead / counted if counted else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Row:
        """The row that :meth:`to_dict` has written."""
        return cls(**{**data, "rules": tuple(data["rules"]), "tests": tuple(data["tests"])})


_HEADS = ("mutants", "dead", "rejected", "alone", "raised", "timeouts", "equivalent", "alive", "preconditions", "score")


def table(rows: Iterable[Row], equivalent: Collection[str]) -> str:
    """Rows as text, one line each and one for all; ``equivalent`` names mutants that are known to change nothing."""
    rows = list(rows)
    width = max((len(row.name) for row in rows), default=0) + 2
    lines = ["rule".ljust(width) + "".join(head.rjust(len(head) + 2) for head in _HEADS)]
    for row in (*rows, _total(rows)):
        same = set(equivalent).intersection(row.alive)
        held = sum(1 for key, test in row.preconditions.items() if test or key in same)
        cells = (
            row.mutants if row.complete else f"{row.examined}/{row.mutants}", row.dead, row.rejected, row.alone,
            row.raised, row.timeouts, len(same), len(row.alive) - len(same), f"{held}/{len(row.preconditions)}",
            f"{row.score(equivalent):.1%}",
        )  # fmt: skip
        text = "".join(str(cell).rjust(len(head) + 2) for cell, head in zip(cells, _HEADS, strict=True))
        lines.append(row.name.ljust(width) + text)
    return "\n".join(lines)


def _total(rows: list[Row]) -> Row:
    total = Row("all", (), "", (), 0)
    for row in rows:
        for name in ("mutants", "examined", "dead", "rejected", "alone", "raised", "timeouts"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.survived += row.survived
        total.unreached += row.unreached
        total.preconditions.update(row.preconditions)
    return total
