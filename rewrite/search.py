"""The worklist: ask every rule at every node, make what is found, and look at the neighbourhood again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from rewrite import printer
from rewrite.apply import Applied, Failed
from rewrite.errors import CycleError
from rewrite.pipeline import ChoicePass
from rewrite.provenance import origin
from rewrite.rule import Match, Miss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.driver import StepRun
    from rewrite.rule import Rule


def search(run: StepRun) -> None:
    """The strategy that makes every match of a step's rules, to their fixed point, and nothing where these are choices.

    Raises:
        CycleError: rules undo each other.
    """
    if not isinstance(run.step, ChoicePass):
        _Sweep(run).sweep()


class _Sweep:
    """The worklist of one step and what is remembered while it runs."""

    def __init__(self, run: StepRun):
        self.run = run
        self.rules = list(run.rules)
        self.queue = deque(run.graph.nodes)
        self.queued = set(self.queue)
        self.alive = set(self.queue)
        self.misses: dict[tuple[str, Node], dict[Node, Miss]] = {}  # by rule and node looked at, then by anchor
        self.dead_ends: set[tuple[str, tuple[Node, ...]]] = set()
        self.programs: dict[str, list[str]] = {}
        self.trail: list[str] = []
        self.again = 0  # rewrites of rewritten nodes
        self.size = len(self.queue)

    def sweep(self) -> None:
        while self.queue and not self.run.out_of_fuel:
            node = self.queue.popleft()
            self.queued.discard(node)
            for rule in list(self.rules):
                if node in self.alive and not self.run.out_of_fuel:
                    self._try(rule, node)
        last = {(rule, anchor): miss for (rule, _), misses in self.misses.items() for anchor, miss in misses.items()}
        self.run.refuse(miss for (_, anchor), miss in last.items() if anchor in self.alive)

    def _try(self, rule: Rule, node: Node) -> None:
        misses = self.misses[rule.name, node] = {}  # what was missed at an earlier look may be there no more
        for found in self._find(rule, node):
            if isinstance(found, Miss):
                misses[found.anchor] = found
                self.run.missed(found)
            elif all(part in self.alive for part in found.nodes) and self._apply(found, node, misses):
                # the rest of what `find` had in mind is out of date, so it looks again
                self._enqueue([node])
                return

    def _find(self, rule: Rule, node: Node) -> Iterator[Match | Miss]:
        try:
            yield from rule.find(self.run.graph, (node,))
        except Exception as error:
            self.rules.remove(rule)
            self.run.reject(rule, node, f"find raised {type(error).__name__}: {error}; the rule was switched off")

    def _apply(self, match: Match, node: Node, misses: dict[Node, Miss]) -> bool:
        """Try a match that was found at a node; whether the graph changed."""
        if (match.rule.name, match.nodes) in self.dead_ends:
            return False
        rewrites_rewritten = any(origin(part) is not None for part in match.nodes)
        outcome = self.run.apply(match, node)
        if isinstance(outcome, Miss):
            misses[outcome.anchor] = outcome
        elif isinstance(outcome, Failed):
            self.dead_ends.add((match.rule.name, match.nodes))
        else:
            self._follow(outcome)
            self.again += rewrites_rewritten
            if rewrites_rewritten and self.again > self.size:
                self._notice_cycle(match.rule)
        return isinstance(outcome, Applied)

    def _follow(self, applied: Applied) -> None:
        """Enqueue living nodes near a rewrite and their users, up to the widest radius of the step's rules."""
        splice, match = applied.splice, applied.match
        self.alive.update(splice.added)
        self.alive.difference_update(applied.erased)  # what was added and nothing reads is erased again
        radius = max(rule.radius for rule in (match.rule, *self.rules))
        changed = dict.fromkeys([*splice.added, *splice.results, *match.inputs, *splice.lost_readers])
        frontier = [node for node in changed if node in self.alive]
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
        print_ = printer.fingerprint(self.run.graph.nodes)
        if print_ in self.programs:
            since = len(self.programs[print_])
            raise CycleError(
                f"step '{self.run.step.name}' came back to a program that it had before: "
                f"{_circle(sorted(set(self.trail[since:])))}"
            )
        self.programs[print_] = list(self.trail)
        if self.again > 10 * self.size + 100:
            raise CycleError(
                f"step '{self.run.step.name}' does not come to an end: results of {_and(sorted(set(self.trail)))} "
                f"have been rewritten {self.again} times; exclude a rule"
            )


def _circle(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the rule '{names[0]}' matches what it makes itself; let its pattern or its check leave that out"
    return f"the rules {_and(names)} undo each other; exclude one of them"


def _and(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
