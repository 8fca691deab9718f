"""``torch-rewrite optimize``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.api import optimize
from rewrite.cli.files import report_file, require_writable, said, written
from rewrite.cli.model import example_of
from rewrite.cli.reporting import put
from rewrite.report.text import narrowed, wrapped
from rewrite.timing import interleave

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rewrite.cli.model import Example
    from rewrite.cli.options import Subject
    from rewrite.cli.reporting import Part
    from rewrite.cli.terminal import Terminal
    from rewrite.lowered import Lower
    from rewrite.result import OptimizedModule
    from rewrite.timing import Comparison

_MODEL, _RESULT = "model", "result"


@dataclass(frozen=True)
class Files:
    """Where results go besides stdout; None for nowhere.

    Attributes:
        result: the program, for :func:`rewrite.load`.
        plan: its plan as JSON.
        report: its report, as text, ``.html`` or ``.json``.
    """

    result: Path | None = None
    plan: Path | None = None
    report: Path | None = None


def run(
    terminal: Terminal, subject: Subject, part: Part, files: Files, *, plan: Path | None,
    lower: Lower | None, compare: bool, **settings: Any,
) -> None:  # fmt: skip
    """Optimize a model, write what is asked for and print the report.

    Args:
        terminal: where progress and results go.
        subject: the model and its inputs.
        part: what is printed.
        files: what is written.
        plan: a file with the plan to follow.
        lower: run the result once on this.
        compare: time the result against the model.
        settings: further arguments of :func:`rewrite.optimize`.
    """
    require_writable((files.result, files.plan, files.report))
    text = None if plan is None else plan.read_text(encoding="utf-8", errors="replace")
    example = example_of(subject, terminal)
    fast = optimize(example.model, example.args, example.kwargs, plan=text, lower=lower, **settings)
    measured = None
    if compare or lower is not None:
        measured = _run(terminal, example, fast, compare)
    _write(terminal, fast, files)
    with narrowed(terminal.columns):
        tail = "" if measured is None else _speed(measured, _ran_on(fast))
        more = None if measured is None else {"comparison": asdict(measured)}
        put(terminal, fast.report, fast.plan, part, tail=tail, more=more)


def _run(terminal: Terminal, example: Example, fast: OptimizedModule, compare: bool) -> Comparison | None:
    """Call the result once, which compiles it, and time it against the model if that is asked for."""
    calls: dict[str, Callable[[], Any]] = {
        _MODEL: lambda: example.model(*example.args, **example.kwargs),
        _RESULT: lambda: fast(*example.args, **example.kwargs),
    }
    with torch.no_grad():
        terminal.doing("compiling")
        calls[_RESULT]()
        if not compare:
            return None
        terminal.rest()  # what turns on the terminal takes time, too
        terminal.say("timing it against the model")
        return interleave(calls)


def _ran_on(fast: OptimizedModule) -> str:
    """What the call ran on; what cannot be lowered runs eagerly."""
    return str(fast.lowerings[0]) if fast.lowerings else "eager"


def _speed(measured: Comparison, lowering: str) -> str:
    """A comparison as a paragraph of the report."""
    model, result = measured.timings[_MODEL], measured.timings[_RESULT]
    threads = torch.get_num_threads()
    text = (
        f"the model {model.median:.3g} ms, the result {result.median:.3g} ms on {lowering}: "
        f"{measured.ratio(_MODEL, _RESULT):.2f}x (medians of {model.rounds} interleaved rounds, "
        f"{threads} thread{'s' if threads > 1 else ''}; the model against itself differs by "
        f"{100 * measured.noise:.2g} %, and smaller differences mean nothing)"
    )
    return "\n".join(wrapped("speed  ", text))


def _write(terminal: Terminal, fast: OptimizedModule, files: Files) -> None:
    if files.result is not None:
        terminal.doing(f"saving {files.result}")
        fast.save(files.result)
        said(files.result, terminal)
    if files.plan is not None:
        written(files.plan, fast.plan.to_json(), terminal)
    if files.report is not None:
        written(files.report, report_file(fast.report, files.report), terminal)
