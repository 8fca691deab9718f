"""What became of a model, and how failures tell of it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from rewrite.driver import StepRecord
from rewrite.graph import Graph
from rewrite.ops import BatchNorm, Convolution, Linear, View, view
from rewrite.pipeline import Step, step_text


@dataclass
class Result:
    """A rewritten model.

    Attributes:
        graph: the rewritten graph.
        record: what was committed, refused and rejected.
        before: the graph as it was captured.
    """

    graph: Graph
    record: StepRecord
    before: Graph

    def views(self, *kinds: type[View]) -> list[Any]:
        """The operators of these kinds that depend on the input, in order."""
        live = [view(node) for node in self.graph.calls() if not self.graph.is_constant(node)]
        return [found for found in live if isinstance(found, kinds)]

    @property
    def layers(self) -> list[Any]:
        """The convolutions and linear layers."""
        return self.views(Convolution, Linear)

    @property
    def norms(self) -> list[Any]:
        """The batch norms."""
        return self.views(BatchNorm)

    @property
    def operators(self) -> list[str]:
        """The operators that depend on the input, by name."""
        live = [node for node in self.graph.calls() if not self.graph.is_constant(node)]
        return [str(node.target).split(".")[1] for node in live if node.target is not operator.getitem]

    @property
    def reasons(self) -> list[str]:
        """Why the rule did not match where it began to."""
        return [refused.reason for refused in self.record.refused]


def counted(rule: Step, record: StepRecord, matches: int | None, refuses: str | None) -> None:
    """Raise unless there are so many rewrites, or none for a reason that contains a text."""
    count, reasons = len(record.commits), [refused.reason for refused in record.refused]
    if refuses is not None:
        if count:
            raise AssertionError(
                told(rule, f"it was to refuse because '{refuses}', and makes {count} rewrites", record)
            )
        if not any(refuses in reason for reason in reasons):
            raise AssertionError(told(rule, f"no refusal says '{refuses}'", record))
    if matches is not None and count != matches:
        raise AssertionError(told(rule, f"there are {count} rewrites, not {matches}", record))


def told(rule: Step, text: str, record: StepRecord) -> str:
    """A message with what the rule did."""
    lines = [f"{step_text(rule)}: {text}"]
    for commit in record.commits:
        lines.append(f"rewrite {commit.number}, {commit.rule}:")
        lines += [f"- {line}" for line in commit.removed] + [f"+ {line}" for line in commit.added]
    lines += [f"refused at '{refused.node}': {refused.reason}" for refused in record.refused]
    return "\n".join(lines)
