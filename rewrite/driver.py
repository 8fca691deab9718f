"""Running a pipeline: steps in order, what they may do, and what is recorded of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewrite import printer
from rewrite.apply import Applied, Applier, Failed
from rewrite.flops import Sizes
from rewrite.gain import NOTHING, Work, gain
from rewrite.pipeline import ChoicePass, rules_of, step_text
from rewrite.provenance import describe, place
from rewrite.repro import Repro
from rewrite.rule import Match, Miss
from rewrite.search import search
from rewrite.strides import Strides
from rewrite.verdict import Verdict
from rewrite.weights import is_algebra

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.fx import Node

    from rewrite.graph import Graph
    from rewrite.listener import Listener
    from rewrite.pipeline import Step
    from rewrite.rule import Rule
    from rewrite.verdict import Verifier


@dataclass(frozen=True)
class Commit:
    """One rewrite that was made.

    Attributes:
        number: counts from 1 over the whole run; ``fuel=number`` stops right after it.
        step, rule: names.
        module: path of the module that the anchor belongs to.
        source: the user's line as ``file:line``, or ''.
        removed, added: the lines of the program before and after.
        verdict: what verification said.
        text: the user's line itself, or ''.
        node: the node at which the rule was asked.
        nodes: the names of the nodes of the match.
        made: the names of the nodes that took their place.
        repro: both sides as text, for :meth:`~rewrite.report.Report.reproduce`.
    """

    number: int
    step: str
    rule: str
    module: str
    source: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    verdict: Verdict
    text: str = ""
    node: str = ""
    nodes: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    repro: Repro | None = None


@dataclass(frozen=True)
class Rejection:
    """A match that was not made: verification said no, or the rule itself failed.

    Attributes:
        step, rule: names.
        module, source, text: of the anchor, as in :class:`Commit`.
        reason: why.
        repro: both sides as text, None where the rule did not come to build the new one.
        node: the anchor's name.
        matched: the lines of the program that would have been replaced.
        gain: what would have been saved, an estimate.
    """

    step: str
    rule: str
    module: str
    source: str
    reason: str
    repro: Repro | None = None
    node: str = ""
    matched: tuple[str, ...] = ()
    text: str = ""
    gain: Work = NOTHING

    def __str__(self) -> str:
        return f"{self.rule} at {_placed(self)}: {self.reason}"


@dataclass(frozen=True)
class Refused:
    """A miss as reports keep it, without references to nodes.

    Attributes:
        rule: its name.
        node: the anchor's name.
        module, source, text: of the anchor, as in :class:`Commit`.
        reason, remedy: as in :class:`~rewrite.rule.Refusal`.
        culprit: the node that is in the way, as messages name it, or ''.
        culprit_line: its line of the program, or ''.
        culprit_text: the user's line that it comes from, or ''.
        matched: the lines of the program that had matched.
        gain: what would have been saved, an estimate.
    """

    rule: str
    node: str
    module: str
    source: str
    reason: str
    culprit: str
    remedy: str
    matched: tuple[str, ...] = ()
    text: str = ""
    culprit_line: str = ""
    culprit_text: str = ""
    gain: Work = NOTHING

    @property
    def why(self) -> str:
        """The reason with the node that is in the way, and the remedy."""
        text = f"{self.reason}: {self.culprit}" if self.culprit else self.reason
        return f"{text} ({self.remedy})" if self.remedy else text

    @property
    def place(self) -> str:
        """Where the rule looked: ``'add_3' (model.py:41, stages.0)``."""
        return _placed(self)

    def __str__(self) -> str:
        return f"{self.rule} at {self.place}: {self.why}"


def _placed(item: Refused | Rejection) -> str:
    where = ", ".join(part for part in (item.source, item.module) if part)
    node = f"'{item.node}'" if item.node else ""
    return f"{node} ({where})" if node and where else node or where or "the whole program"


@dataclass
class StepRecord:
    """What one step of the pipeline did.

    Attributes:
        step: its text.
        commits, rejections: the rewrites that were made, and those that were not.
        refused: the misses that are left when the pipeline ends: what a later step replaced is in nobody's way.
        seconds, verify_seconds, draws: what it took.
        rules: the names of the rules that ran.
    """

    step: str
    commits: list[Commit] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0
    verify_seconds: float = 0.0
    draws: int = 0
    rules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The step without its options."""
        return self.step.partition("{")[0]


Strategy = Callable[["StepRun"], None]
"""Which matches of a step are made, in which order."""


class Driver:
    """Runs steps over a graph, in place.

    Args:
        graph: the graph to rewrite.
        verifier: checks each match; None accepts all.
        listeners: hear every event.
        fuel: how many rewrites may be made in all; None for no limit.
        exclude: names of rules and steps, and module paths, that are left alone.
        strategy: what decides; by default every match of every rule is made.
    """

    def __init__(
        self,
        graph: Graph,
        verifier: Verifier | None = None,
        listeners: Sequence[Listener] = (),
        fuel: int | None = None,
        exclude: Iterable[str] = (),
        strategy: Strategy = search,
    ):
        self.graph = graph
        self.listeners = listeners
        self.fuel = fuel
        self.exclude = frozenset(exclude)
        self.strategy = strategy
        self.applier = Applier(graph, verifier, self.exclude)
        self.commits = 0
        self.records: list[StepRecord] = []

    def run(self, steps: Iterable[Step]) -> list[StepRecord]:
        """Run the steps in order, then copy what would have other strides than before where somebody sees them.

        Raises:
            CycleError: rules undo each other.
            PlanError: the strategy replays a plan, and it does not fit.
        """
        strides = Strides.of(self.graph)
        released = strides.release(self.graph)
        for step in steps:
            record = StepRecord(step_text(step))
            self.records.append(record)
            for listener in self.listeners:
                listener.step_started(step, self.graph)
            started = time.perf_counter()
            if step.name not in self.exclude:
                self.graph.eliminate_dead()  # a rule that asks who reads a value must not be told of dead readers
                run = StepRun(self, step, record)
                if not isinstance(step, ChoicePass):  # of choices only who chooses asks the rules
                    run.asks()
                self.strategy(run)
            record.seconds = time.perf_counter() - started
            for listener in self.listeners:
                listener.step_finished(record, self.graph)
        if self.commits or released:
            strides.restore(self.graph)
        left = {node.name for node in self.graph.nodes}
        for record in self.records:
            # a later step replaced what this one was refused at
            record.refused = [refused for refused in record.refused if refused.node in left]
        return self.records

    @property
    def out_of_fuel(self) -> bool:
        """Whether no further rewrite may be made."""
        return self.fuel is not None and self.commits >= self.fuel


class StepRun:
    """One step over the graph, as a strategy sees it: rules to ask, and what becomes of what they find.

    Attributes:
        graph: rewritten by :meth:`apply` only.
        step: the step.
        position: of the step in the pipeline, from 0.
        rules: those of the step that are not excluded.
    """

    def __init__(self, driver: Driver, step: Step, record: StepRecord):
        self.graph, self.step, self.position = driver.graph, step, len(driver.records) - 1
        self.rules = tuple(rule for rule in rules_of(step) if rule.name not in driver.exclude)
        self._driver, self._record, self._sizes = driver, record, Sizes(driver.graph)

    @property
    def out_of_fuel(self) -> bool:
        """Whether no further rewrite may be made."""
        return self._driver.out_of_fuel

    @property
    def exclude(self) -> frozenset[str]:
        """Names of rules and steps, and paths of modules, that are left alone."""
        return self._driver.exclude

    def asks(self) -> None:
        """Record that the rules of the step are asked."""
        self._record.rules = tuple(rule.name for rule in self.rules)

    def applies(self, match: Match, node: Node) -> bool:
        """Make a match as :meth:`apply` does; whether it was made."""
        return isinstance(self.apply(match, node), Applied)

    def apply(self, match: Match, node: Node) -> Applied | Miss | Failed:
        """Make a match that its rule found when it was asked at ``node``, and record what becomes of it."""
        outcome = self._driver.applier.apply(match, self._driver.commits + 1, self._admitted)
        if isinstance(outcome, Miss):
            self.missed(outcome)
            return outcome
        if outcome.verdict is not None:
            self._record.verify_seconds += outcome.verdict.seconds
            self._record.draws += outcome.verdict.draws
        if isinstance(outcome, Failed):
            self.reject(match.rule, match.anchor, outcome.reason, outcome.repro, match.nodes)
        else:
            self._commit(outcome, node)
        return outcome

    def _admitted(self, match: Match) -> None:
        for listener in self._driver.listeners:
            listener.matched(match)

    def _commit(self, applied: Applied, node: Node) -> None:
        self._driver.commits += 1
        match = applied.match
        module, source, text = place(match.anchor)
        commit = Commit(
            self._driver.commits, self.step.name, match.rule.name, module, source,
            applied.removed, applied.added, applied.verdict, text, node.name,
            tuple(part.name for part in match.nodes), tuple(part.name for part in applied.splice.added), applied.repro,
        )  # fmt: skip
        self._record.commits.append(commit)
        for listener in self._driver.listeners:
            listener.committed(commit)

    def missed(self, miss: Miss) -> None:
        """Tell of a miss."""
        for listener in self._driver.listeners:
            listener.missed(miss)

    def refuse(self, misses: Iterable[Miss]) -> None:
        """Record the misses that are left when the step ends.

        Not those at weight algebra, or because of it: rules made it, and no user can change it.
        """
        keeps = {rule.name: rule.keeps for rule in self.rules}
        alive = set(self.graph.nodes)
        for miss in misses:
            if any(node is not None and is_algebra(node) for node in (miss.anchor, miss.refusal.culprit)):
                continue
            nodes = [node for node in miss.matched if node in alive]
            self._record.refused.append(refused(miss, nodes, gain(nodes, self._sizes, keeps.get(miss.rule))))

    def reject(
        self, rule: Rule, node: Node, reason: str, repro: Repro | None = None, matched: Sequence[Node] = ()
    ) -> None:
        """Record that a match, or the rule as a whole, failed."""
        module, source, text = place(node)
        rejection = Rejection(
            self.step.name, rule.name, module, source, reason, repro, node.name, tuple(printer.program(matched)), text,
            gain(matched, self._sizes, rule.keeps),
        )  # fmt: skip
        self._record.rejections.append(rejection)
        for listener in self._driver.listeners:
            listener.rejected(rejection)


def refused(miss: Miss, matched: Iterable[Node], saved: Work) -> Refused:
    """A miss without references to nodes; of those that had matched, the given ones are still there."""
    refusal, culprit = miss.refusal, miss.refusal.culprit
    module, source, text = place(miss.anchor)
    seen = ("", "", "") if culprit is None else (describe(culprit), printer.line(culprit), place(culprit)[2])
    return Refused(
        miss.rule, miss.anchor.name, module, source, refusal.reason, seen[0], refusal.remedy,
        tuple(printer.program(matched)), text, *seen[1:], saved,
    )  # fmt: skip
