"""The worklist: find, check, build a detached fragment, verify, splice; then look at the neighbourhood again."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewrite import printer
from rewrite.aliases import alias_classes
from rewrite.errors import CycleError
from rewrite.fragment import Builder, Fragment, extract
from rewrite.pipeline import rules_of, step_text
from rewrite.provenance import describe, location, module_path, origin
from rewrite.rule import Match, Miss, Refusal, admit
from rewrite.splice import Splice, changed_aliases
from rewrite.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.graph import Graph
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


@dataclass(frozen=True)
class Rejection:
    """A match that was not made: verification said no, or the rule itself failed."""

    step: str
    rule: str
    module: str
    source: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """A miss as reports keep it, without references to nodes."""

    rule: str
    node: str
    module: str
    source: str
    reason: str
    culprit: str
    remedy: str
    matched: int


@dataclass
class StepRecord:
    """What one step of the pipeline did."""

    step: str
    commits: list[Commit] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0
    verify_seconds: float = 0.0
    draws: int = 0


class Listener:
    """Hears what the driver does; subclasses override what they need."""

    def step_started(self, step: Step, graph: Graph) -> None:
        """A step begins."""

    def matched(self, match: Match) -> None:
        """A match passed its checks and is about to be built."""

    def missed(self, miss: Miss) -> None:
        """A rule began to match and did not."""

    def committed(self, commit: Commit) -> None:
        """A rewrite was made."""

    def rejected(self, rejection: Rejection) -> None:
        """A match was not made."""

    def step_finished(self, record: StepRecord, graph: Graph) -> None:
        """A step ended."""


class Driver:
    """Runs steps over a graph, in place.

    Args:
        graph: the graph to rewrite.
        verifier: checks each match; None accepts all.
        listeners: hear every event.
        fuel: how many rewrites may be made in all; None for no limit.
        exclude: names of rules and steps, and module paths, that are left alone.
    """

    def __init__(
        self,
        graph: Graph,
        verifier: Verifier | None = None,
        listeners: Sequence[Listener] = (),
        fuel: int | None = None,
        exclude: Iterable[str] = (),
    ):
        self.graph = graph
        self.verifier = verifier
        self.listeners = listeners
        self.fuel = fuel
        self.exclude = frozenset(exclude)
        self.commits = 0
        self.records: list[StepRecord] = []

    def run(self, steps: Iterable[Step]) -> list[StepRecord]:
        """Run the steps in order; each to its fixed point.

        Raises:
            CycleError: rules undo each other.
        """
        for step in steps:
            record = StepRecord(step_text(step))
            self.records.append(record)
            for listener in self.listeners:
                listener.step_started(step, self.graph)
            started = time.perf_counter()
            if step.name not in self.exclude:
                _Sweep(self, step, record).run()
            record.seconds = time.perf_counter() - started
            for listener in self.listeners:
                listener.step_finished(record, self.graph)
        return self.records

    @property
    def out_of_fuel(self) -> bool:
        """Whether no further rewrite may be made."""
        return self.fuel is not None and self.commits >= self.fuel


class _Sweep:
    """One step over the graph: the worklist and what is remembered while it runs."""

    def __init__(self, driver: Driver, step: Step, record: StepRecord):
        self.driver, self.graph, self.step, self.record = driver, driver.graph, step, record
        self.rules = [rule for rule in rules_of(step) if rule.name not in driver.exclude]
        self.graph.eliminate_dead()  # a rule that asks who reads a value must not be told of dead readers
        self.queue = deque(self.graph.nodes)
        self.queued = set(self.queue)
        self.alive = set(self.queue)
        self.misses: dict[tuple[str, Node], dict[Node, Miss]] = {}  # by rule and node looked at, then by anchor
        self.dead_ends: set[tuple[str, tuple[Node, ...]]] = set()
        self.programs: dict[int, list[str]] = {}
        self.trail: list[str] = []
        self.again = 0  # rewrites of rewritten nodes
        self.size = len(self.queue)

    def run(self) -> None:
        while self.queue and not self.driver.out_of_fuel:
            node = self.queue.popleft()
            self.queued.discard(node)
            for rule in list(self.rules):
                if node in self.alive and not self.driver.out_of_fuel:
                    self._try(rule, node)
        last = {(rule, anchor): miss for (rule, _), misses in self.misses.items() for anchor, miss in misses.items()}
        self.record.refused = [refused(miss) for (_, anchor), miss in last.items() if anchor in self.alive]

    def _try(self, rule: Rule, node: Node) -> None:
        misses = self.misses[rule.name, node] = {}  # what was missed at an earlier look may be there no more
        for found in self._find(rule, node):
            if isinstance(found, Miss):
                self._miss(found, misses)
            elif all(part in self.alive for part in found.nodes) and self._apply(found, misses):
                # the rest of what `find` had in mind is out of date, so it looks again
                self._enqueue([node])
                return

    def _find(self, rule: Rule, node: Node) -> Iterator[Match | Miss]:
        try:
            yield from rule.find(self.graph, (node,))
        except Exception as error:
            self.rules.remove(rule)
            self._reject(rule, node, f"find raised {type(error).__name__}: {error}; the rule was switched off")

    def _miss(self, miss: Miss, misses: dict[Node, Miss]) -> None:
        misses[miss.anchor] = miss
        for listener in self.driver.listeners:
            listener.missed(miss)

    def _apply(self, match: Match, misses: dict[Node, Miss]) -> bool:
        """Check, build, verify and splice a match; whether the graph changed."""
        rule, graph = match.rule, self.graph
        if (rule.name, match.nodes) in self.dead_ends:
            return False
        try:
            refusal = self._excluded(match) or admit(graph, match) or rule.check(match)
            if refusal is not None:
                self._miss(Miss(rule.name, match.anchor, refusal, len(match.nodes)), misses)
                return False
            for listener in self.driver.listeners:
                listener.matched(match)
            old = extract(match)
            builder = Builder(graph, match, self.driver.commits + 1)
            new = builder.finish(rule.rewrite(match, builder))
        except Exception as error:  # whatever a rule does, the graph stays as it is
            return self._dead_end(match, f"raised {type(error).__name__}: {error}")
        try:
            verdict = self._verify(match, old, new)
        except Exception as error:  # what cannot be checked is not made
            return self._dead_end(match, f"verification raised {type(error).__name__}: {error}")
        if not verdict.accepted:
            return self._dead_end(match, verdict.reason)
        return self._splice(match, new, verdict)

    def _excluded(self, match: Match) -> Refusal | None:
        for node in match.nodes:
            path = module_path(node)
            if any(path == name or path.startswith(f"{name}.") for name in self.driver.exclude):
                return Refusal(f"module '{path}' is excluded", node)
        return None

    def _verify(self, match: Match, old: Fragment, new: Fragment) -> Verdict:
        if self.driver.verifier is None:
            return Verdict(True)
        verdict = self.driver.verifier.verify(self.graph, match, old, new)
        self.record.verify_seconds += verdict.seconds
        self.record.draws += verdict.draws
        return verdict

    def _splice(self, match: Match, new: Fragment, verdict: Verdict) -> bool:
        graph = self.graph
        rewrites_rewritten = any(origin(node) is not None for node in match.nodes)
        removed = tuple(printer.program(match.nodes))
        before = alias_classes(graph)
        module, source = module_path(match.anchor), location(match.anchor)
        splice = Splice(graph, match, new)
        changed = changed_aliases(graph, before)
        if changed:
            splice.rollback()
            return self._dead_end(match, changed)
        added = tuple(printer.program(splice.new)) or tuple(
            f"{old.name} = {printer.argument_text(node)}"
            for old, node in zip(match.outputs, splice.results, strict=True)
        )
        erased = splice.commit()
        self.driver.commits += 1
        commit = Commit(self.driver.commits, self.step.name, match.rule.name, module, str(source or ""), removed,
                        added, verdict, source.text if source else "")  # fmt: skip
        self.record.commits.append(commit)
        for listener in self.driver.listeners:
            listener.committed(commit)
        self.alive.difference_update(erased)
        self.alive.update(splice.added)
        self._requeue(match.rule, [*splice.added, *splice.results, *match.inputs, *splice.lost_readers])
        self.again += rewrites_rewritten
        if rewrites_rewritten and self.again > self.size:
            self._notice_cycle(match.rule)
        return True

    def _requeue(self, rule: Rule, nodes: Sequence[Node]) -> None:
        """Enqueue living nodes and their users, up to the widest radius of the step's rules."""
        radius = max(other.radius for other in (rule, *self.rules))
        frontier = [node for node in dict.fromkeys(nodes) if node in self.alive]
        near = dict.fromkeys(frontier)
        for _ in range(radius):
            frontier = [user for node in frontier for user in node.users if user not in near and user in self.alive]
            near.update(dict.fromkeys(frontier))
        self._enqueue(near)

    def _enqueue(self, nodes: Iterable[Node]) -> None:
        fresh = [node for node in nodes if node in self.alive and node not in self.queued]
        self.queue.extend(fresh)
        self.queued.update(fresh)

    def _notice_cycle(self, rule: Rule) -> None:
        """Compare the program with earlier ones. A cycle does not end, so it is enough to begin late."""
        self.trail.append(rule.name)
        print_ = printer.fingerprint(self.graph.nodes)
        if print_ in self.programs:
            since = len(self.programs[print_])
            names = sorted(set(self.trail[since:]))
            raise CycleError(
                f"step '{self.step.name}' came back to a program that it had before: the rules "
                f"{' and '.join(repr(name) for name in names)} undo each other; exclude one of them"
            )
        self.programs[print_] = list(self.trail)
        if self.again > 10 * self.size + 100:
            names = sorted(set(self.trail))
            raise CycleError(
                f"step '{self.step.name}' does not come to an end: the rules {' and '.join(map(repr, names))} have "
                f"rewritten their own results {self.again} times; exclude one of them"
            )

    def _dead_end(self, match: Match, reason: str) -> bool:
        self.dead_ends.add((match.rule.name, match.nodes))
        self._reject(match.rule, match.anchor, reason)
        return False

    def _reject(self, rule: Rule, node: Node, reason: str) -> None:
        rejection = Rejection(self.step.name, rule.name, module_path(node), str(location(node) or ""), reason)
        self.record.rejections.append(rejection)
        for listener in self.driver.listeners:
            listener.rejected(rejection)


def refused(miss: Miss) -> Refused:
    """A miss without references to nodes."""
    refusal = miss.refusal
    culprit = describe(refusal.culprit) if refusal.culprit is not None else ""
    source = str(location(miss.anchor) or "")
    return Refused(miss.rule, miss.anchor.name, module_path(miss.anchor), source, refusal.reason, culprit,
                   refusal.remedy, miss.matched)  # fmt: skip
