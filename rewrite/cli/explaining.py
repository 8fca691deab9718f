"""``torch-rewrite explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewrite.api import explain
from rewrite.cli.model import example_of
from rewrite.report.text import narrowed

if TYPE_CHECKING:
    from rewrite.cli.options import Subject
    from rewrite.cli.terminal import Terminal


def run(terminal: Terminal, subject: Subject, *, rule: str | None, training: bool, data: bool, **settings: Any) -> None:
    """Explain a model.

    Args:
        terminal: where progress and results go.
        subject: the model and its inputs.
        rule: what is explained, None for all.
        training: in training mode.
        data: print JSON.
        settings: further arguments of :func:`rewrite.explain`.
    """
    example = example_of(subject, terminal, training)
    found = explain(example.model, example.args, rule, example_kwargs=example.kwargs, **settings)
    if data:
        terminal.put_data(found.to_dict())
    else:
        with narrowed(terminal.columns):
            terminal.put(str(found))
