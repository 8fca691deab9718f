"""``torch-rewrite filters``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewrite.api import filters
from rewrite.cli.model import example_of
from rewrite.report.text import narrowed

if TYPE_CHECKING:
    from rewrite.cli.options import Subject
    from rewrite.cli.terminal import Terminal


def run(terminal: Terminal, subject: Subject, *, data: bool, **settings: Any) -> None:
    """Measure the filters of a model.

    Args:
        terminal: where progress and results go.
        subject: the model and its inputs.
        data: print JSON.
        settings: further arguments of :func:`rewrite.filters`.
    """
    example = example_of(subject, terminal)
    found = filters(example.model, example.args, example_kwargs=example.kwargs, **settings)
    if data:
        terminal.put_data(found.to_dict())
    else:
        with narrowed(terminal.columns):
            terminal.put(str(found))
