"""Is what was chosen worth it: the program with its choices against the one without, as both will run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rewrite import printer
from rewrite.events import emit
from rewrite.result import Ready
from rewrite.rewriting import Rewriting
from rewrite.select import compare

if TYPE_CHECKING:
    from rewrite.recipe import Recipe
    from rewrite.select import Selection, Trial, Tuning

_UNTOLD = "measurements are missing, so that another process chooses anew"


def tried(rewriting: Rewriting) -> Rewriting:
    """The rewriting if its choices pay, else that of the same model without them."""
    selection, tuning = rewriting.selection, rewriting.recipe.tuning
    if selection is None or tuning is None:
        return rewriting
    if not selection.complete:
        rewriting = replace(rewriting, tentative=_UNTOLD)
    return _compared(rewriting, selection, tuning) if selection.made else rewriting


def _compared(rewriting: Rewriting, selection: Selection, tuning: Tuning) -> Rewriting:
    started = time.perf_counter()
    captured = rewriting.captured
    unchosen = Rewriting.of(captured, replace(_untuned(rewriting), verify="off"))
    trial: Trial | None = None
    try:
        trial = compare(unchosen.graph, rewriting.graph, captured.flat_inputs, tuning.lowering)
    except Exception as error:  # the compiler is not ours; without its word nothing is chosen
        said = f"the programs could not be compared: {type(error).__name__}: {error}"
    else:
        said = str(trial)
    spent = time.perf_counter() - started - (0.0 if trial is None else trial.lowering)
    name = tuning.lowering.name
    ready = None
    if trial is not None and tuning.lowering.freezes:
        ready = Ready.of(trial.run, name, trial.lowering, captured.flat_inputs)
    if trial is not None and trial.pays:
        note = f"algorithms and layouts were chosen by measurement on {name}: {said}"
        return replace(rewriting.noting(note), ready=ready, compared=spent)
    measured = trial is not None and trial.measured
    because = "does not pay as a whole" if measured else "is not made"
    plain = _without(rewriting, f"what was selected by the times of its parts {because}: {said}", said)
    if printer.digest(plain.graph) != printer.digest(unchosen.graph):
        ready = None  # verification has left something out
    return replace(plain, ready=ready, compared=spent, tentative=rewriting.tentative if measured else _UNTOLD)


def is_chosen(rewriting: Rewriting) -> bool:
    """Whether something in a program was selected by measurement."""
    return rewriting.selection is not None and any(choice.chosen for choice in rewriting.selection.choices)


def dropped(rewriting: Rewriting, reason: str) -> Rewriting:
    """The rewriting of the same model without its choices, for a program that is not equal to the model with them.

    Each of them was checked by itself; rounding that adds up over many layers may still be more than is allowed.
    """
    note = f"what was selected is not made, for the whole model would not be equal to the source: {reason}"
    return replace(_without(rewriting, note, reason), tentative=rewriting.tentative)


def _untuned(rewriting: Rewriting) -> Recipe:
    return replace(rewriting.recipe, tuning=None, listeners=())


def _without(rewriting: Rewriting, note: str, reason: str) -> Rewriting:
    selection = rewriting.selection
    assert selection is not None
    emit("selection-dropped", f"what was selected is not made: {reason}", reason=reason)
    selection.drop()
    plain = Rewriting.of(rewriting.captured, _untuned(rewriting)).noting(note)
    return replace(
        plain, recipe=rewriting.recipe, selection=selection, notes=(*selection.notes, *plain.notes),
        seconds=rewriting.seconds + plain.seconds, verified=rewriting.matching,
    )  # fmt: skip
