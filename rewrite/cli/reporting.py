"""What a command prints of a run: its report, or one part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewrite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewrite.cli.terminal import Terminal
    from rewrite.plan import Plan
    from rewrite.report import Report

EVERY = "all"
"""Stands for every rule where a diff is asked for."""


@dataclass(frozen=True)
class Part:
    """Which part of a report is printed; at most one is asked for, else the report as text.

    Attributes:
        data: the report as JSON.
        diff: the diff of this rule or step, or of :data:`EVERY`.
        reproduce: the script of the rewrite of this number.
        plan: the plan as JSON.

    Raises:
        InputError: more than one.
    """

    data: bool = False
    diff: str | None = None
    reproduce: int | None = None
    plan: bool = False

    def __post_init__(self) -> None:
        asked = {"--json": self.data, "--diff": self.diff is not None, "--reproduce": self.reproduce is not None,
                 "--plan": self.plan}  # fmt: skip
        at_most_one(asked)


def at_most_one(asked: Mapping[str, bool]) -> None:
    """Of the options that say what goes to stdout, by name, only one may be given.

    Raises:
        InputError: more than one is.
    """
    names = [name for name, given in asked.items() if given]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} are given, and each is all that goes to stdout; leave out one")


def put(
    terminal: Terminal, report: Report, plan: Plan | None, part: Part, *, head: str = "", tail: str = "",
    more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Print a report, or a part of it.

    Args:
        terminal: where to.
        report: the report.
        plan: of the run.
        part: what is printed.
        head, tail: paragraphs around the report as text.
        more: what its data has besides.

    Raises:
        InputError: the run has no such rule, rewrite or plan.
    """
    if part.data:
        terminal.put_data({**report.to_dict(), **(more or {})})
    elif part.diff is not None:
        terminal.put_diff(str(report.diff(None if part.diff == EVERY else part.diff)))
    elif part.reproduce is not None:
        terminal.put(report.reproduce(part.reproduce).rstrip("\n"))
    elif part.plan:
        if plan is None:
            raise InputError("the saved program has no plan; save it again")
        terminal.put(plan.to_json().rstrip("\n"))
    else:
        terminal.put("\n\n".join(filter(None, (head, str(report), tail))))
