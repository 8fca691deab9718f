"""A captured model and what a recipe made of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rewrite.alone import alone
from rewrite.cost import count
from rewrite.errors import RuleError
from rewrite.flops import Sizes
from rewrite.listener import Listener
from rewrite.numerics import note as numerics_note
from rewrite.pipeline import rules_of
from rewrite.plan import Plan
from rewrite.report import Report
from rewrite.result import Program
from rewrite.strides import note as strides_note
from rewrite.symbolic import costs
from rewrite.verify.sizes import batch_symbols
from rewrite.versions import versions

if TYPE_CHECKING:
    from rewrite.driver import Commit, StepRecord
    from rewrite.graph import Graph
    from rewrite.recipe import Recipe
    from rewrite.result import Ready
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
        verified: seconds that the verification of matches took of which there is no record any more.
        tentative: why another process should choose anew, '' where it need not.
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
    verified: float = 0.0
    tentative: str = ""

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
        notes = (*notes, *(() if selection is None else selection.notes))
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

    @property
    def matching(self) -> float:
        """Seconds that the verification of matches took."""
        return self.verified + sum(record.verify_seconds for record in self.records)

    def program(self, verdict: Verdict | None) -> Program:
        """The program with its report.

        Args:
            verdict: what the comparison of the whole model said, None where it was not made.
        """
        matching = self.matching
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
            tentative=self.tentative, ready=self.ready,
        )  # fmt: skip


def _cautions(recipe: Recipe, records: list[StepRecord]) -> tuple[str, ...]:
    """What the rules that have rewritten something want to be known, each once."""
    made = {commit.rule for record in records for commit in record.commits}
    rules = [rule for step in recipe.pipeline for rule in rules_of(step)]
    return tuple(dict.fromkeys(rule.caution for rule in rules if rule.caution and rule.name in made))
