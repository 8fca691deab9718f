"""Sites: where the rules of a turn apply, with what they offer there and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rewrite.errors import RuleError
from rewrite.flops import Sizes
from rewrite.fragment import Builder, Fragment
from rewrite.gain import NOTHING, Work, work
from rewrite.provenance import called, module_path, place
from rewrite.rule import Match, Miss, admit

if TYPE_CHECKING:
    from rewrite.approximation.contract import Approximation, Option, Watch
    from rewrite.graph import Graph


@dataclass(frozen=True)
class Priced:
    """An option of a site as it would run.

    Attributes:
        option: what the rule offers.
        before, after: the work of one sample.
    """

    option: Option
    before: Work
    after: Work

    @property
    def saved(self) -> float:
        """Seconds of one sample by the nominal roofline."""
        return self.before.seconds - self.after.seconds


@dataclass(eq=False)
class Site:
    """A match of a rule.

    Attributes:
        match: of the graph that was searched.
        watches: what the rule wants to see.
        offers: what saves time, the least error first.
        reason: why there is none.
        before: the work of one sample as it is.
        first, last: the places of its operators in the program.
    """

    match: Match
    watches: Mapping[str, Watch]
    offers: list[Priced] = field(default_factory=list)
    reason: str = ""
    before: Work = NOTHING
    first: int = 0
    last: int = 0

    @property
    def rule(self) -> Approximation:
        """Whose it is."""
        return self.match.rule  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """Of its result in the program."""
        return self.match.anchor.name

    @property
    def module(self) -> str:
        """The path of the module that it comes from, or what it is called."""
        return module_path(self.match.anchor) or called(self.match.anchor)

    @property
    def source(self) -> str:
        """The user's line, as ``file:line``."""
        return place(self.match.anchor)[1]

    def price(self, graph: Graph) -> None:
        """Ask the rule for its options, and keep those that save time.

        Raises:
            RuleError: the rule cannot build what it offers.
        """
        seen = {name: watch.statistic for name, watch in self.watches.items()}
        sizes = Sizes(graph)
        before = self.before = work(self.match.nodes, sizes)
        try:
            made = self.rule.options(graph, self.match, seen)
        except RuntimeError as error:
            if type(error).__name__ != "_LinAlgError":  # which torch does not export
                raise
            made, self.reason = (), "nothing can be fitted to its values, which are too large, or NaN"
        self.watches = {}  # which may be large
        for option in sorted(made, key=lambda option: option.error):
            after = work(replacement(graph, self.match, option).calls(), sizes)
            if after.seconds < before.seconds:
                self.offers.append(Priced(option, before, after))
        if not self.offers:
            self.reason = self.reason or ("what it offers takes as long" if made else "the rule offers nothing here")


def replacement(graph: Graph, match: Match, option: Option, number: int = 0) -> Fragment:
    """What an option of a site would put in its place; the graph is only read.

    Raises:
        RuleError: the rule cannot build it.
    """
    chosen = replace(match, captures={**match.captures, "option": option})
    builder = Builder(graph, chosen, number)
    try:
        return builder.finish(match.rule.rewrite(chosen, builder))
    except Exception as error:
        where = f"'{match.rule.name}' offers '{option.text}' at '{match.anchor.name}'"
        raise RuleError(f"{where} and cannot build it: {type(error).__name__}: {error}") from error


def find_sites(graph: Graph, rules: Sequence[Approximation], exclude: frozenset[str]) -> tuple[list[Site], list[Miss]]:
    """Every site of some rules, in the order of the program, and where they began to match and did not."""
    sites: list[Site] = []
    misses: list[Miss] = []
    order = {node: i for i, node in enumerate(graph.nodes)}
    for rule in rules:
        for found in rule.find(graph, list(graph.calls())):
            refusal = None if isinstance(found, Miss) else admit(graph, found) or rule.check(found)
            if isinstance(found, Miss):
                misses.append(found)
            elif refusal is not None:
                misses.append(Miss(rule.name, found.anchor, refusal, found.nodes))
            elif not _is_excluded(found, exclude):
                places = [order[node] for node in found.nodes]
                sites.append(Site(found, rule.watch(graph, found), first=min(places), last=max(places)))
    return sorted(sites, key=lambda site: site.last), misses


def _is_excluded(match: Match, exclude: frozenset[str]) -> bool:
    paths = [module_path(node) for node in match.nodes]
    return any(path == name or path.startswith(f"{name}.") for path in paths for name in exclude)
