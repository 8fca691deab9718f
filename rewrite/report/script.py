"""A rewrite as a script of its own, which tries both sides on drawn inputs and needs torch alone."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import TYPE_CHECKING

from rewrite.driver import Rejection
from rewrite.errors import InputError
from rewrite.report import trial
from rewrite.repro import ROUNDED
from rewrite.rule import Fidelity
from rewrite.source import NARROW, tuple_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rewrite.driver import Commit
    from rewrite.repro import Repro

BATCH = 2
"""The batch size, where any runs."""

_WIDTH = 116
_EQUAL = (
    "The rule promises equality in real arithmetic. In float64 the two may differ by what old moves when each input "
    "changes by a relative 2**-36. In the dtypes of the model new may be 8 times as far from float64 as old is, or as "
    "old moves when each input changes in its last digit."
)
_PROMISES = {
    Fidelity.BITWISE.value: "The rule promises the same bits: every element has to be equal.",
    Fidelity.ELEMENTWISE.value: _EQUAL,
    Fidelity.NORMWISE.value: _EQUAL,
    ROUNDED: "The rule promises equality up to a few roundings of the weights. New may be 8 times as far from float64 "
    "as old is, or as old moves when each input changes in its last digit, in float64 too.",
    Fidelity.APPROXIMATE.value: "The rule is an approximation: differences are shown, and none counts as too large.",
    Fidelity.STRUCTURAL.value: "The rule makes another function: differences are shown, and none counts as too large.",
}

_SCRIPT = """\
{about}

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from typing import Any

import torch

{dtypes}aten = torch.ops.aten
N = {batch}  # the batch size, where any runs


def inputs(draw):
{inputs}
    return {arguments}


def old({signature}):
{old}


def new({signature}):
{new}


# What follows is the same in every such script.


{parts}


if __name__ == "__main__":
    agree, lines = compare({promise!r}, {outputs!r}, old, new, inputs(Draw(seed=0)), dict({bound}))
    print(*lines, "old and new agree" if agree else "old and new do NOT agree", sep="\\n")
    sys.exit(0 if agree else 1)
"""


def reproduction(rewrite: Commit | Rejection, versions: Mapping[str, str]) -> str:
    """The script of a rewrite or of a rejected match.

    Args:
        rewrite: what became of the match.
        versions: of what made it, by name.

    Raises:
        InputError: no replacement was built.
    """
    repro = rewrite.repro
    if repro is None:
        reason = f" ({rewrite.reason})" if isinstance(rewrite, Rejection) else ""
        raise InputError(
            f"there is nothing to compare: '{rewrite.rule}' built no replacement{reason}; pass a rewrite's number, "
            "or a match that was rejected for what it computes"
        )
    return _script(repro, _remarks(rewrite), versions)


def _remarks(rewrite: Commit | Rejection) -> list[str]:
    place = ", ".join(part for part in (rewrite.source, rewrite.module) if part)
    where = f" at {place}" if place else ""
    if isinstance(rewrite, Rejection):
        return [f"{rewrite.rule}{where}: a match that was rejected: {rewrite.reason}"]
    title = f"{rewrite.rule} #{rewrite.number}{where}: the program before (old) and after (new)"
    return [title, rewrite.text]


def _script(repro: Repro, remarks: Iterable[str], versions: Mapping[str, str]) -> str:
    code = (*repro.inputs, *repro.old, *repro.new)
    dtypes = [name for name in NARROW if any(re.search(rf"(?<![\w.]){name}\b", line) for line in code)]
    arguments = [line.partition(" = ")[0] for line in repro.inputs]
    bound = [f"{name}={name}" for name in dtypes]
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    about = [*remarks, _PROMISES[repro.fidelity], *_foreign(code), made and f"Made by {made}."]
    return _SCRIPT.format(
        about="\n#\n".join(map(_comment, filter(None, about))),
        dtypes="".join(f"{name} = torch.{name}\n" for name in dtypes),
        batch=BATCH,
        inputs=_indented(repro.inputs),
        arguments=tuple_text(arguments),
        signature=", ".join([*arguments, *(["*", *bound] if bound else [])]),
        old=_indented(repro.old),
        new=_indented(repro.new),
        parts="\n\n".join(inspect.getsource(part) for part in trial.PARTS).rstrip(),
        promise=repro.fidelity,
        outputs=repro.outputs,
        bound=", ".join(bound),
    )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _comment(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _foreign(code: Iterable[str]) -> list[str]:
    """What to say of operators that torch does not define."""
    found = {name for line in code for name in re.findall(r"torch\.ops\.(\w+)\.", line)} - {"prims"}
    return [f"Import what defines the operators of '{name}' first; torch does not." for name in sorted(found)]
