"""A captured model and what a recipe made of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rewrite.alone import alone
from rewrite.cost import count
from rewrite.errors import RuleError
from rewrite.events import emit
from rewrite.flops import Sizes
from rewrite.listener import Listener
from rewrite.numerics import note as numerics_note
from rewrite.pipeline import Pipeline, rules_of
from rewrite.plan import Plan
from rewrite.recipe import Recipe
from rewrite.report import Report
from rewrite.result import Program, Ready
from rewrite.select import compare
from rewrite.strides import note as strides_note
from rewrite.symbolic import costs
from rewrite.verify.sizes import batch_symbols
from rewrite.versions import versions

if TYPE_CHECKING:
    from rewrite.driver import Commit, StepRecord
    from rewrite.graph import Graph
    from rewrite.select import Selection
    from rewrite.trace import Capture
    from rewrite.verdict import Verdict


@dataclass(frozen=True)
class _Watch(Listener):
    """Sees to it that the size of a free batch stays free: a program for one size would run with any.

    Verification does not notice, for with the size fixed it can draw no other.
    """

    free: frozenset[Any]

    def step_finished(self, record: StepRecord, graph: Graph) -> None:
        """Stop where a size is no symbol any more."""
        if not self.free <= batch_symbols(graph):
            raise RuleError(
                f"a rule of '{record.step}' reads the size of the batch as a number, by int() or a comparison, which "
                "fixes it for the whole program; let it compute with the size as it is, or leave the rule out with "
                "exclude="
            )


@dataclass(frozen=True)
class Rewriting:
    """What a recipe made of a captured model, not yet compared with the model as a whole.

    Attributes:
        captured: the model; its graph is as it was captured.
        recipe: what was done.
        graph: the rewritten graph.
        records: what each step did.
        seconds: what that took.
        notes: what the user should know besides what capture noticed, a sentence each.
        selection: what was chosen; None where nothing was to be.
        ready: the program lowered for the example, where that has been done already.
        compared: seconds that the comparison with the program without choices took.
    """

    captured: Capture
    recipe: Recipe
    graph: Graph
    records: list[StepRecord]
    seconds: float
    notes: tuple[str, ...] = ()
    selection: Selection | None = None
    ready: Ready | None = None
    compared: float = 0.0

    @classmethod
    def of(cls, captured: Capture, recipe: Recipe) -> Rewriting:
        """Rewrite a copy of a captured graph.

        Raises:
            CycleError: rules undo each other.
            PlanError: the recipe's plan is not for this program.
            RuleError: a rule fixed the size of the batch.
        """
        started = time.perf_counter()
        with alone:
            graph = captured.graph.copy()
            watch = _Watch(batch_symbols(graph))
            tuning = recipe.selects
            selection = None if tuning is None else tuning.selection(captured.flat_inputs)
            records = replace(recipe, listeners=(*recipe.listeners, watch)).apply(graph, selection)
        notes = () if recipe.plan is None else ("the rewrites are those of a plan, and nothing else was looked for",)
        notes = (*notes, *numerics_note(recipe.forbidden), *_cautions(recipe, records), *strides_note(graph))
        notes = (*notes, *((selection.note,) if selection is not None and selection.note else ()))
        return cls(captured, recipe, graph, records, time.perf_counter() - started, notes, selection)

    @property
    def commits(self) -> list[Commit]:
        """The rewrites, in order."""
        return [commit for record in self.records for commit in record.commits]

    @cached_property
    def plan(self) -> Plan:
        """The rewrites as a value."""
        return Plan.of(self.recipe.pipeline, self.recipe.exclude, self.records, self.captured.graph, self.graph)

    def noting(self, note: str) -> Rewriting:
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))

    def tried(self) -> Rewriting:
        """The same if its choices pay, compared as a whole with the program without them, else that program."""
        selection, tuning = self.selection, self.recipe.tuning
        if selection is None or selection.before is None or tuning is None:
            return self
        started = time.perf_counter()
        try:
            with alone:
                steps = self.recipe.pipeline.steps[selection.position + 1 :]
                before = Recipe(Pipeline(steps), self.recipe.exclude, "off")
                before.apply(selection.before)
            trial = compare(selection.before, self.graph, self.captured.flat_inputs, tuning.lowering)
        except Exception as error:  # the compiler is not ours; without its word nothing is chosen
            said, trial = f"{type(error).__name__}: {error}", None
        else:
            said = str(trial)
        spent = self.compared + time.perf_counter() - started
        name, inputs = tuning.lowering.name, self.captured.flat_inputs
        ready = None if trial is None or not tuning.lowering.freezes else Ready.of(trial.run, name, inputs)
        if trial is not None and trial.pays:
            note = f"algorithms and layouts were chosen by measurement on {name}: {said}"
            return replace(self.noting(note), ready=ready, compared=spent)
        emit("selection-dropped", f"what was selected is not made: {said}", reason=said)
        plain = Rewriting.of(self.captured, replace(self.recipe, tuning=None))
        plain = plain.noting(f"what was selected by the times of its parts does not pay as a whole: {said}")
        selection.choices = [replace(choice, chosen="") for choice in selection.choices]
        return replace(plain, selection=selection, ready=ready, compared=spent, seconds=self.seconds + plain.seconds)

    def program(self, verdict: Verdict | None) -> Program:
        """The program with its report.

        Args:
            verdict: what the comparison of the whole model said, None where it was not made.
        """
        matching = sum(record.verify_seconds for record in self.records)
        chosen = 0.0 if self.selection is None else self.selection.spent
        split = {
            "capture": self.captured.seconds,
            "passes": self.seconds - matching - chosen,
            **({"selection": chosen + self.compared} if self.selection is not None else {}),
            "verification": matching + (verdict.seconds if verdict else 0.0),
        }
        original, recipe = self.captured.graph, self.recipe
        report = Report(
            type(self.captured.model).__name__, str(recipe.pipeline), self.records, count(original), count(self.graph),
            verdict, split, (*self.captured.notes, *self.notes), versions(),
            Sizes(original).per_sample, costs(original, self.graph),
            () if self.selection is None else tuple(self.selection.choices),
        )  # fmt: skip
        values = recipe.value_rules(self.records)
        return Program(
            self.graph, report, values, self.captured.one_row, split, self.plan, decided=self.captured.decided,
            ready=self.ready,
        )  # fmt: skip


def _cautions(recipe: Recipe, records: list[StepRecord]) -> tuple[str, ...]:
    """What the rules that have rewritten something want to be known, each once."""
    made = {commit.rule for record in records for commit in record.commits}
    rules = [rule for step in recipe.pipeline for rule in rules_of(step)]
    return tuple(dict.fromkeys(rule.caution for rule in rules if rule.caution and rule.name in made))
