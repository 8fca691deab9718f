"""What a verifier answers, and the interface through which the driver asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.rule import Match


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check of old against new.

    Attributes:
        accepted: whether new may take the place of old.
        reason: for a rejection: where, by how much, against what bound.
        draws: how many times both sides were evaluated.
        seconds: wall time.
        error: the largest error of new as a fraction of what was allowed.
        note: for an acceptance: what it does not cover ("holds at the recorded sizes only", "shapes only").
        distances: of whole models: how far new and old are from float64, as the norm of the difference relative to the
            norm of the result, the largest of all outputs; None where that is not known.
    """

    accepted: bool
    reason: str = ""
    draws: int = 0
    seconds: float = 0.0
    error: float = 0.0
    note: str = ""
    distances: tuple[float, float] | None = None


class Verifier(Protocol):
    """Checks a rewrite before it is made."""

    def verify(self, graph: Graph, match: Match, old: Fragment, new: Fragment) -> Verdict:
        """Compare the two fragments of a match; must not change the graph."""
        ...
