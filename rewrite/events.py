"""What is decided, as log records with data: each has a text for people and an event for programs.

The logger is ``rewrite``, so ``TORCH_LOGS="+rewrite"`` shows every decision and ``TORCH_LOGS="rewrite"`` the phases. A
record has two more attributes: ``event``, the name of what happened, and ``data``, a dict of strings and numbers. With
``TORCH_REWRITE_EVENTS=FILE`` every event is also appended to a file, one line of JSON each.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rewrite.listener import Listener
from rewrite.pipeline import step_text
from rewrite.provenance import describe, location, module_path
from rewrite.verdict import Verdict

if TYPE_CHECKING:
    from rewrite.driver import Commit, Rejection, StepRecord
    from rewrite.graph import Graph
    from rewrite.pipeline import Step
    from rewrite.rule import Match, Miss

FILE = "TORCH_REWRITE_EVENTS"
"""The environment variable that names a file for events."""

logger = logging.getLogger("rewrite")


def emit(event: str, text: str, level: int = logging.INFO, **data: Any) -> None:
    """Log one event.

    Args:
        event: its name, in kebab case.
        text: a sentence for people.
        level: INFO for phases, DEBUG for single decisions, WARNING for what the user should act on.
        data: strings, numbers, and lists and dicts of such.
    """
    if logger.isEnabledFor(level):
        logger.log(level, text, extra={"event": event, "data": data}, stacklevel=2)


class EventFile(logging.Handler):
    """Appends events to a file, one JSON object a line: ``time``, ``event``, ``level``, ``text`` and the data."""

    def __init__(self, path: str):
        super().__init__(logging.DEBUG)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; records without an event are left out."""
        event = getattr(record, "event", None)
        if event is None:
            return
        head = {"time": record.created, "event": event, "level": record.levelname, "text": record.getMessage()}
        try:
            # opened anew each time: whole lines, also from several processes
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**head, **getattr(record, "data", {})}, default=str) + "\n")
        except OSError:
            self.handleError(record)


def _configure() -> None:
    path = os.environ.get(FILE)
    if path and not any(isinstance(handler, EventFile) for handler in logger.handlers):
        logger.addHandler(EventFile(path))
        logger.setLevel(logging.DEBUG)


_configure()


class Decisions(Listener):
    """Logs what a driver does."""

    def step_started(self, step: Step, graph: Graph) -> None:
        """Log the beginning of a step."""
        emit("step-started", f"{step_text(step)}: begins", logging.DEBUG, step=step_text(step))

    def matched(self, match: Match) -> None:
        """Log a match before it is built."""
        if logger.isEnabledFor(logging.DEBUG):
            text = f"{match.rule.name} matches at {describe(match.anchor)}"
            emit("match", text, logging.DEBUG, rule=match.rule.name, nodes=[node.name for node in match.nodes],
                 module=module_path(match.anchor), source=str(location(match.anchor) or ""))  # fmt: skip

    def missed(self, miss: Miss) -> None:
        """Log a miss."""
        if logger.isEnabledFor(logging.DEBUG):
            culprit = miss.refusal.culprit
            emit("miss", f"{miss}", logging.DEBUG, rule=miss.rule, node=miss.anchor.name, reason=miss.refusal.reason,
                 culprit="" if culprit is None else culprit.name, remedy=miss.refusal.remedy,
                 matched=[node.name for node in miss.matched],
                 module=module_path(miss.anchor), source=str(location(miss.anchor) or ""))  # fmt: skip

    def committed(self, commit: Commit) -> None:
        """Log a rewrite."""
        if logger.isEnabledFor(logging.DEBUG):
            text = f"{commit.rule} #{commit.number} {commit.module} ({commit.source}): {len(commit.removed)} operators"
            emit("commit", f"{text} become {len(commit.added)}", logging.DEBUG, rule=commit.rule, number=commit.number,
                 step=commit.step, module=commit.module, source=commit.source, removed=list(commit.removed),
                 added=list(commit.added), verdict=asdict(commit.verdict))  # fmt: skip

    def rejected(self, rejection: Rejection) -> None:
        """Log a rejected match."""
        text = f"{rejection.rule} is rejected at {rejection.module} ({rejection.source}): {rejection.reason}"
        emit("rejection", text, logging.INFO, step=rejection.step, rule=rejection.rule, node=rejection.node,
             module=rejection.module, source=rejection.source, reason=rejection.reason)  # fmt: skip

    def step_finished(self, record: StepRecord, graph: Graph) -> None:
        """Log the end of a step."""
        counts = {"commits": len(record.commits), "refused": len(record.refused), "rejected": len(record.rejections)}
        made = f"{len(record.commits)} commit{'s' * (len(record.commits) != 1)}"
        said = f"{made}, {len(record.refused)} refused, {len(record.rejections)} rejected"
        emit("step-finished", f"{record.step}: {said} in {record.seconds:.2f} s", logging.INFO, step=record.step,
             seconds=record.seconds, verify_seconds=record.verify_seconds, draws=record.draws, **counts)  # fmt: skip


def verdict_data(verdict: Verdict | None) -> dict[str, Any]:
    """A verdict as data of an event."""
    return {} if verdict is None else asdict(verdict)
