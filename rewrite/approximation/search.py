"""From a program and data to a choice for each site: fit, price, measure, choose, measure again, take back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rewrite.approximation.budget import Offer, least_error, most_saved
from rewrite.approximation.calibration import Batches
from rewrite.approximation.sites import Priced, Site, find_sites, replacement
from rewrite.approximation.student import Taken, built
from rewrite.approximation.trial import Drift, Swap, Trial, compares
from rewrite.errors import InputError
from rewrite.gain import total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rewrite.approximation.contract import Approximation
    from rewrite.fragment import Fragment
    from rewrite.graph import Graph

ROUNDS = 5
"""How often a choice is corrected by what was measured, before single sites are taken back."""


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        max_error: of the program's outputs, relative; infinite where none is named.
        max_site_error: of each site's output, relative; likewise.
        saved: seconds of one sample that are to be saved by the nominal roofline, with as little error as that takes;
            None to save as much as the errors allow.
    """

    max_error: float = math.inf
    max_site_error: float = math.inf
    saved: float | None = None


@dataclass(eq=False)
class Candidate:
    """An option of a site with what is known of it.

    Attributes:
        site: where.
        priced: what.
        measured, drift: of the site's output and of the program's, by it alone, on held-out data; None where that was
            not measured.
        reach: how much of an error at the site reaches the outputs.
        trust: measured over predicted errors, of the option of the site that was measured.
    """

    site: Site
    priced: Priced
    measured: float | None = None
    drift: float | None = None
    reach: float = 1.0
    trust: float = 1.0
    _fragment: Fragment | None = None

    def swap(self, graph: Graph) -> Swap:
        """It in its place in the graph of its site."""
        if self._fragment is None:
            self._fragment = replacement(graph, self.site.match, self.priced.option)
        return Swap(self.site.match, self._fragment)

    def offer(self, scale: float) -> Offer:
        """What it is for the knapsack, with errors multiplied by a factor."""
        return Offer(scale * self.expected, self.priced.saved, self.site.first, self.site.last)

    @property
    def predicted(self) -> float:
        """The error of the site's output by the fit."""
        return self.priced.option.error

    @property
    def expected(self) -> float:
        """The error of the outputs, by what is known."""
        return self.drift if self.drift is not None else self.reach * self.trust * self.predicted


@dataclass(eq=False)
class Turn:
    """What came of one turn.

    Attributes:
        sites: in the order of the program.
        candidates: those that were chosen from, those of a site in the order of their errors.
        chosen: those of them that were taken.
        dropped: what was chosen and taken back.
        drift: of the outputs with all that was chosen, from the program before the first turn.
        so_far: of the outputs by each chosen site and those before it.
        refused: where rules began to match and did not, as text.
    """

    sites: list[Site]
    candidates: list[Candidate]
    chosen: list[Candidate] = field(default_factory=list)
    dropped: list[Candidate] = field(default_factory=list)
    drift: float = 0.0
    so_far: dict[Candidate, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class Search:
    """Approximates a program, turn after turn.

    Args:
        graph: the program, with weights of its own; only read.
        batches: the data.
        goal: what is asked for.
        exclude: paths of modules that are left as they are.
        progress: told how much of how much is done.

    Attributes:
        goal: what is asked for.
        turns: what came of each.
        taken: all that was chosen, in order.
        seconds: how long each phase took.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Batches,
        goal: Goal,
        exclude: frozenset[str] = frozenset(),
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self._source = graph
        self._batches = batches
        self.goal = goal
        self._exclude = exclude
        self._progress = progress
        self._wanted: list[list[Any]] = []
        self.turns: list[Turn] = []
        self.taken: list[Taken] = []
        self.seconds: dict[str, float] = {}

    def run(self, rules: Sequence[Approximation]) -> None:
        """Take turns, one for each rule of whole regions, and one for the rules between two of these.

        Raises:
            InputError: data that does not fit, or that can be read once only where there are several turns.
        """
        turns = list(_turns(rules))
        graph = self._source
        before = total(graph).seconds
        for number, some in enumerate(turns):
            left = len(turns) - number
            goal = self._share(left, before, total(graph).seconds)
            turn = self._turn(graph, some, goal)
            self.turns.append(turn)
            self.taken += [Taken(each.site.rule, each.site.name, each.priced.option) for each in turn.chosen]
            if left > 1:
                graph, _ = built(self._source, self.taken)
                self._batches = self._batches.again()

    def _share(self, left: int, before: float, now: float) -> Goal:
        """What a turn may spend, or has to save, of what is left for so many turns."""
        goal = self.goal
        if goal.saved is not None:
            return replace(goal, saved=max(0.0, goal.saved - (before - now)) / left)
        spent = self.turns[-1].drift if self.turns else 0.0
        return replace(goal, max_error=math.sqrt(spent**2 + max(0.0, goal.max_error**2 - spent**2) / left))

    def _turn(self, graph: Graph, rules: Sequence[Approximation], goal: Goal) -> Turn:
        sites, misses = find_sites(graph, rules, self._exclude)
        trial = _Measured(graph, self._batches)
        with self._timed("fitting"):
            self._see(graph, trial, sites)
        self._wanted = self._wanted or trial.outputs()
        if not any(compares(output) for output in self._wanted[0]):
            raise InputError("no output of the model is a tensor of real or complex numbers, so that no error can be "
                             "measured; approximate a part of it that gives some, such as logits")  # fmt: skip
        with self._timed("offers"):
            for done, site in enumerate(sites, start=1):
                site.price(graph)
                self._progress(done, len(sites))
        candidates = [Candidate(site, priced) for site in sites for priced in site.offers
                      if priced.option.error <= goal.max_site_error]  # fmt: skip
        turn = Turn(sites, candidates, refused=[str(miss) for miss in misses])
        with self._timed("measuring"):
            self._probe(trial, candidates)
            self._choose(trial, turn, goal)
            for each in turn.chosen:
                trial.alone(each)
            swaps: list[Swap] = []
            for each in turn.chosen:
                swaps.append(each.swap(graph))
                turn.so_far[each] = trial.drift(swaps, self._wanted)
        return turn

    def _see(self, graph: Graph, trial: Trial, sites: Sequence[Site]) -> None:
        """Show the sites' statistics the data that weights are fitted to."""
        watches = [watch for site in sites for watch in site.watches.values()]
        observers = [(watch.nodes, _shown(watch)) for watch in watches]
        for flat in self._batches.fitting(graph):
            trial.run(flat, observers=observers)

    def _probe(self, trial: _Measured, candidates: Sequence[Candidate]) -> None:
        """Measure one option of each site alone, and apply to the others what it shows."""
        sites = list(dict.fromkeys(each.site for each in candidates))
        for done, site in enumerate(sites, start=1):
            mine = [each for each in candidates if each.site is site]
            probe = mine[len(mine) // 2]
            measured, drift = trial.alone(probe)
            if 0 < measured < math.inf:
                for each in mine:
                    each.reach = drift / measured
                    each.trust = measured / probe.predicted if probe.predicted > 0 else 1.0
            self._progress(done, len(sites))

    def _choose(self, trial: _Measured, turn: Turn, goal: Goal) -> None:
        """Take what the budget buys; measure, and correct the choice until it holds."""
        before = self.turns[-1].drift if self.turns else 0.0
        scale, dropped = 1.0, set[Candidate]()
        for _ in range(ROUNDS):
            free = [each for each in turn.candidates if each not in dropped]
            offers = [Offer(scale * each.expected, each.priced.saved, each.site.first, each.site.last) for each in free]
            budget = math.sqrt(max(0.0, goal.max_error**2 - before**2))
            picks = most_saved(offers, budget) if goal.saved is None else least_error(offers, goal.saved)
            chosen = [free[k] for k in picks]
            drift, bad = self._together(trial, chosen, goal)
            dropped |= bad
            if not bad and drift <= goal.max_error:
                break
            if bad and goal.saved is None:
                # the option of a site that is not too far off by what was seen of another one
                dropped |= {each for each in free if each.trust * each.predicted > goal.max_site_error}
            if not bad:
                expected = math.sqrt(before**2 + sum(each.expected**2 for each in chosen))
                scale = max(scale * 1.1, drift / expected if expected > 0 else 1.0)
        while chosen and (bad or drift > goal.max_error):
            worst = max(chosen, key=lambda each: (each in bad, each.expected / each.priced.saved))
            chosen = [each for each in chosen if each is not worst]
            dropped.add(worst)
            drift, bad = self._together(trial, chosen, goal)
        turn.chosen, turn.drift = chosen, drift
        taken = {each.site for each in chosen}
        turn.dropped = list({each.site: each for each in dropped if each.site not in taken}.values())

    def _together(self, trial: _Measured, chosen: Sequence[Candidate], goal: Goal) -> tuple[float, set[Candidate]]:
        """The error of the outputs with all of some candidates, and which of these are too far off at their sites."""
        swaps = [each.swap(trial.graph) for each in chosen]
        drift = trial.drift(swaps, self._wanted)
        bad = {each for each, swap in zip(chosen, swaps, strict=True) if not swap.error <= goal.max_site_error}
        if math.isfinite(goal.max_site_error):
            bad.update(each for each in chosen if not trial.alone(each)[0] <= goal.max_site_error)
        return drift, bad

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


class _Measured(Trial):
    """A program on the held-out data.

    Args:
        graph: the program.
        batches: the data.
    """

    def __init__(self, graph: Graph, batches: Batches):
        super().__init__(graph)
        self.graph = graph
        self._held_out = batches.held_out
        self._own: list[list[Any]] = []

    def outputs(self) -> list[list[Any]]:
        """Those of the program as it is."""
        self._own = self._own or [self.run(flat) for flat in self._held_out]
        return self._own

    def drift(self, swaps: Sequence[Swap], wanted: Sequence[Sequence[Any]]) -> float:
        """How far the outputs with some replacements are from others."""
        drift = Drift()
        for flat, theirs in zip(self._held_out, wanted, strict=True):
            drift.add(self.run(flat, swaps), theirs)
        return drift.error

    def alone(self, candidate: Candidate) -> tuple[float, float]:
        """The error of a candidate at its site, and that of the outputs by it alone; measured once."""
        if candidate.measured is None or candidate.drift is None:
            swap = candidate.swap(self.graph)
            candidate.drift = self.drift([swap], self.outputs())
            candidate.measured = swap.error
        return candidate.measured, candidate.drift


def _shown(watch: Any) -> Callable[[Any], None]:
    def show(values: Any) -> None:
        watch.statistic.add(*(values[node] for node in watch.nodes))

    return show


def _turns(rules: Iterable[Approximation]) -> Iterator[list[Approximation]]:
    together: list[Approximation] = []
    for rule in rules:
        if rule.region:
            if together:
                yield together
            yield [rule]
            together = []
        else:
            together.append(rule)
    if together:
        yield together
