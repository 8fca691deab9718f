"""``torch-rewrite bisect``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from rewrite.api import bisect
from rewrite.cli.files import require_writable, said
from rewrite.cli.model import example_of
from rewrite.cli.objects import named, raised
from rewrite.errors import InputError, RewriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from rewrite.api import Bisection
    from rewrite.cli.model import Example
    from rewrite.cli.options import Subject
    from rewrite.cli.terminal import Terminal


def run(
    terminal: Terminal, subject: Subject, *, check: str | None, reproduce: Path | None, **settings: Any
) -> None:  # fmt: skip
    """Find the first rewrite that makes a check fail.

    Args:
        terminal: where progress and results go.
        subject: the model and its inputs.
        check: names a function of the result and the inputs; None to verify the whole model.
        reproduce: where the rewrite is written as a script.
        settings: further arguments of :func:`rewrite.bisect`.
    """
    require_writable((reproduce,))
    judge = None if check is None else named(check)
    if judge is not None and not callable(judge):
        raise InputError(f"--check '{check}' is of type {type(judge).__name__}; name a function of result and inputs")
    example = example_of(subject, terminal)
    found = bisect(
        example.model, example.args, judge and _check(str(check), judge, example), example_kwargs=example.kwargs,
        **settings,
    )  # fmt: skip
    if reproduce is not None:
        found.reproduce(reproduce)
        said(reproduce, terminal)
    terminal.put_diff(f"{found.finding}\n{_advice(found)}")


def _advice(found: Bisection) -> str:
    number, rule, module = found.commit.number, found.commit.rule, found.commit.module
    lines = [
        f"to go on without it: --exclude {rule}" + (f", or --exclude {module} for the module alone" if module else ""),
        "to look at it: bisect --reproduce FILE writes both sides as a script that needs torch alone;",
        f"  optimize --fuel {number - 1} stops right before it, --fuel {number} right after it",
    ]
    return "\n".join(lines)


def _check(name: str, judge: Callable[..., Any], example: Example) -> Callable[[nn.Module], Any]:
    """The user's check of a result on the inputs of the example; one that takes no inputs gets the result alone."""
    alone = _takes(judge, 1) and not _takes(judge, 1 + len(example.args), example.kwargs)

    def check(fast: nn.Module) -> Any:
        try:
            return judge(fast) if alone else judge(fast, *example.args, **example.kwargs)
        except (AssertionError, RewriteError):
            raise
        except Exception as error:
            raise raised(f"check '{name}'", error) from error

    return check


def _takes(judge: Callable[..., Any], count: int, keywords: Mapping[str, Any] | None = None) -> bool:
    """Whether a function can be called with so many arguments, as far as its signature tells."""
    try:
        inspect.signature(judge).bind(*range(count), **(keywords or {}))
    except (TypeError, ValueError):
        return False
    return True
