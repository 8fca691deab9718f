"""``torch-rewrite offers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewrite.api import offers
from rewrite.cli.model import example_of
from rewrite.cli.reporting import EVERY, at_most_one
from rewrite.errors import InputError
from rewrite.report.text import narrowed

if TYPE_CHECKING:
    from rewrite.cli.options import Subject
    from rewrite.cli.terminal import Terminal
    from rewrite.report import Offered


def run(
    terminal: Terminal, subject: Subject, *, rules: str | None, refusals: bool, diff: str | None, data: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """List what rules offer in a model.

    Args:
        terminal: where progress and results go.
        subject: the model and its inputs.
        rules: what is asked, None for every choice.
        refusals: print why there are no others instead.
        diff: print the diffs of what this rule offers instead, or of all.
        data: print JSON instead.
        settings: further arguments of :func:`rewrite.offers`.

    Raises:
        InputError: more than one of the three, or a diff of a rule that offers nothing.
    """
    at_most_one({"--json": data, "--diff": diff is not None, "--refusals": refusals})
    example = example_of(subject, terminal)
    found = offers(example.model, example.args, rules, example_kwargs=example.kwargs, **settings)
    with narrowed(terminal.columns):
        if data:
            terminal.put_data(found.to_dict())
        elif diff is not None:
            terminal.put_diff(_diff(found, diff))
        else:
            terminal.put(found.refusals() if refusals else str(found))


def _diff(found: Offered, rule: str) -> str:
    chosen = [str(item) for item in found if rule in (EVERY, item.rule)]
    if not chosen and rule != EVERY:
        offering = ", ".join(sorted({item.rule for item in found})) or "none"
        raise InputError(f"'{rule}' offers nothing in this model; rules that do: {offering}")
    return "\n\n".join(chosen)
