"""What became of a mutant."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fate(enum.Enum):
    """What became of a mutant."""

    KILLED = "killed"
    """A test fails."""
    REJECTED = "rejected"
    """No test fails, but verification rejected a rewrite that it had accepted, so no model would be wrong."""
    TIMEOUT = "timeout"
    """A test does not come to an end, or ends the process; the mutant counts as killed."""
    SURVIVED = "survived"
    """Every test passes."""
    UNREACHED = "unreached"
    """No test comes to the place that is changed."""

    @property
    def dead(self) -> bool:
        """Whether the evidence tells the mutant from the rule."""
        return self not in (Fate.SURVIVED, Fate.UNREACHED)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, and what did it.

    Attributes:
        key: the mutant's name.
        fate: what became of it.
        test: the test that failed, or in which a rewrite was rejected, or that did not end; '' if none.
        error: the first line of the failure, or the reason of the rejection.
        rejected: whether verification rejected a rewrite up to then.
        raised: whether the rule raised an exception up to then.
        seconds: what it took.
    """

    key: str
    fate: Fate
    test: str = ""
    error: str = ""
    rejected: bool = False
    raised: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """The evidence without a mutant.

    Attributes:
        tests: how many tests pass.
        failed: those that fail as it is; they are left out.
        seconds: what all of them take.
    """

    tests: int
    failed: tuple[str, ...]
    seconds: float
