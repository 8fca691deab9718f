"""How a caller hears what the driver does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewrite.driver import Commit, Rejection, StepRecord
    from rewrite.graph import Graph
    from rewrite.pipeline import Step
    from rewrite.rule import Match, Miss


class Listener:
    """Hears what the driver does; subclasses override what they need."""

    def step_started(self, step: Step, graph: Graph) -> None:
        """A step begins."""

    def matched(self, match: Match) -> None:
        """A match passed its checks and is about to be built."""

    def missed(self, miss: Miss) -> None:
        """A rule began to match and did not."""

    def committed(self, commit: Commit) -> None:
        """A rewrite was made."""

    def rejected(self, rejection: Rejection) -> None:
        """A match was not made."""

    def step_finished(self, record: StepRecord, graph: Graph) -> None:
        """A step ended."""
