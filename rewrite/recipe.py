"""What is done to a graph, whatever front end it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rewrite.driver import Driver
from rewrite.errors import InputError
from rewrite.events import Decisions
from rewrite.numerics import forbidden
from rewrite.pipeline import ChoicePass, Pipeline, rules_of
from rewrite.replay import Replay
from rewrite.search import search
from rewrite.verify import MatchVerifier

if TYPE_CHECKING:
    from rewrite.driver import StepRecord, StepRun
    from rewrite.graph import Graph
    from rewrite.listener import Listener
    from rewrite.numerics import Numerics
    from rewrite.plan import Plan
    from rewrite.select import Selection, Tuning

Verify = Literal["off", "default", "thorough"]


@dataclass(frozen=True)
class Settings:
    """A recipe as text and numbers, to be kept in files.

    Attributes:
        pipeline: the text of the pipeline.
        exclude, verify, fuel: as in :class:`Recipe`.
        method: the method of the model that was captured, None for ``forward``.
        numerics: as in :class:`Recipe`.
        tuning: what the choices depend on, '' where none were made.
    """

    pipeline: str
    exclude: tuple[str, ...] = ()
    verify: str = "default"
    fuel: int | None = None
    method: str | None = None
    numerics: str = "default"
    tuning: str = ""


@dataclass(frozen=True)
class Recipe:
    """A pipeline and how it is run.

    Attributes:
        pipeline: the steps.
        exclude: names of steps and rules that do not run, and paths of modules that are left alone; also the rules of
            the pipeline that ``numerics`` forbids.
        verify: how much each match is checked.
        fuel: at most so many rewrites; None for no limit.
        listeners: hear every match, miss and rewrite.
        plan: make the rewrites of this plan, of the same pipeline and exclusions, instead of searching.
        numerics: ``"elementwise"`` forbids what does not bound the error of each element by its own terms.
        tuning: how steps that choose do it; without it they make nothing.

    Raises:
        InputError: an unknown level of verification, a fuel that is no count, or unknown numerics.
    """

    pipeline: Pipeline
    exclude: tuple[str, ...] = ()
    verify: Verify = "default"
    fuel: int | None = None
    listeners: tuple[Listener, ...] = ()
    plan: Plan | None = None
    numerics: Numerics = "default"
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        if self.verify not in ("off", "default", "thorough"):
            raise InputError(f"verify={self.verify!r} is not one of 'off', 'default', 'thorough'")
        if self.fuel is not None and self.fuel < 0:
            raise InputError(f"fuel={self.fuel!r} is not a count; pass a whole number, or None for no limit")
        object.__setattr__(self, "exclude", tuple(dict.fromkeys((*self.exclude, *self.forbidden))))

    @property
    def forbidden(self) -> tuple[str, ...]:
        """The names of rules of the pipeline that the numerics forbid."""
        return forbidden(self.numerics, self.pipeline)

    def settings(self, method: str | None = None) -> Settings:
        """The recipe as text; listeners and rules that no text names are lost."""
        tuning = "" if self.selects is None else self.selects.identity
        return Settings(str(self.pipeline), self.exclude, self.verify, self.fuel, method, self.numerics, tuning)

    @property
    def selects(self) -> Tuning | None:
        """How steps that choose do it; None where there are none, or where a plan has decided."""
        choosing = any(isinstance(step, ChoicePass) and step.name not in self.exclude for step in self.pipeline)
        return self.tuning if choosing and self.plan is None else None

    def apply(self, graph: Graph, selection: Selection | None = None) -> list[StepRecord]:
        """Rewrite a graph in place, check its invariants, and drop the weights that it does not need any more.

        Args:
            graph: changed.
            selection: decides in steps that choose; None makes nothing there.

        Raises:
            CycleError: rules undo each other.
            PlanError: the plan is not for this graph.
            GraphError: a rule broke the graph.
        """
        verifier = None if self.verify == "off" else MatchVerifier(self.verify)
        listeners = (Decisions(), *self.listeners)
        replay = None if self.plan is None else Replay(self.plan, graph)
        strategy = replay or _Strategy(selection)
        driver = Driver(graph, verifier, listeners, self.fuel, self.exclude, strategy)
        records = driver.run(self.pipeline)
        if replay is not None and self.fuel is None:
            replay.finish()
        graph.check()
        graph.prune()
        return records

    def value_rules(self, records: list[StepRecord]) -> tuple[str, ...]:
        """Of the rules that rewrote something, those whose result holds for the present values of weights only."""
        fired = {commit.rule for record in records for commit in record.commits}
        rules = (rule for step in self.pipeline for rule in rules_of(step))
        return tuple(dict.fromkeys(rule.name for rule in rules if rule.reads_values and rule.name in fired))


@dataclass(frozen=True)
class _Strategy:
    """Makes everything that rules find, but chooses where steps are choices."""

    selection: Selection | None

    def __call__(self, run: StepRun) -> None:
        if self.selection is not None and isinstance(run.step, ChoicePass):
            self.selection(run)
        else:
            search(run)
