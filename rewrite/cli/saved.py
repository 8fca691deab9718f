"""``torch-rewrite show``: what a saved result says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite.api import load
from rewrite.artifact import Artifact, unpacked
from rewrite.cli.reporting import put
from rewrite.errors import InputError
from rewrite.report.text import narrowed, scaled, wrapped

if TYPE_CHECKING:
    from pathlib import Path

    from rewrite.cli.reporting import Part
    from rewrite.cli.terminal import Terminal
    from rewrite.plan import Plan


def run(terminal: Terminal, path: Path, part: Part, *, number: int, verify: bool) -> None:
    """Print the report of a saved result, or a part of it.

    Args:
        terminal: where progress and results go.
        path: the file.
        part: what is printed.
        number: which of its programs, from 1.
        verify: load it, which runs its programs and compares their outputs with those in the file.

    Raises:
        ArtifactError: the file is nothing that was saved, or damaged.
        VerificationError: a program gives other outputs here.
        InputError: there is no such program, or it has no such part.
    """
    terminal.doing(f"reading {path}")
    # what is only read may come from another torch
    artifact = Artifact.of(unpacked(path.read_bytes(), f"'{path}'", any_torch=True))
    if not 1 <= number <= len(artifact.programs):
        raise InputError(f"--program {number} is not in the file, which has {len(artifact.programs)}; count from 1")
    if verify:
        terminal.doing("running it")
        load(path, lower="eager", any_torch=True)
        terminal.say(f"{path} gives the outputs that were saved with it")
    stored = artifact.programs[number - 1]
    with narrowed(terminal.columns):
        put(terminal, stored.report, stored.plan, part, head=_head(artifact, number, path), tail=_plan(stored.plan))


def _head(artifact: Artifact, number: int, path: Path) -> str:
    size = sum(tensor.numel() * tensor.element_size() for tensor in artifact.weights.values())
    text = (
        f"{artifact.model}, {scaled(size, 'B')} of weights in {len(artifact.weights)} tensors; program {number} of "
        f"{len(artifact.programs)} takes ({', '.join(artifact.programs[number - 1].takes)})"
    )
    return "\n".join(wrapped(f"{path}  ", text, 2))


def _plan(plan: Plan | None) -> str:
    if plan is None:
        return ""
    text = (
        f"{len(plan.decisions)} rewrites lead from the program {plan.before[:12]} to {plan.after[:12]}; --plan prints "
        "them for optimize --plan"
    )
    return "\n".join(wrapped("plan  ", text))
