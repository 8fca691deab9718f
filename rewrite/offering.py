"""Offers: what rules could put in the place of parts of a graph, checked and verified, and nothing of it made.

A choice (a product with a matrix or a 1x1 convolution, a dilated convolution or one on phases) is better here and worse
there. So it does not rewrite in the worklist of a pipeline unless the pipeline names it; it offers an alternative, and
who chooses among them knows what each side costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewrite import printer
from rewrite.apply import Applier, Failed, Prepared
from rewrite.flops import Sizes
from rewrite.gain import Work, work
from rewrite.provenance import describe
from rewrite.rule import Miss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.crossover import Crossover
    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.rule import Match, Rule
    from rewrite.verdict import Verdict, Verifier


@dataclass(frozen=True)
class Offer:
    """An alternative to some nodes of a graph, which is as it was.

    Whether outputs would share memory in another way shows when an offer is made: then it fails as any rewrite.

    Attributes:
        match: the nodes.
        old, new: the fragment that they are, and the one that could stand in its place.
        removed, added: the lines of the program before and after, as they would be.
        verdict: what verification said.
        before, after: the work of both sides. Weight code is not counted, which is folded.
        crossovers: from which sizes on the alternative takes fewer operations, where the rule says so.
    """

    match: Match
    old: Fragment
    new: Fragment
    removed: tuple[str, ...]
    added: tuple[str, ...]
    verdict: Verdict
    before: Work
    after: Work
    crossovers: tuple[Crossover, ...] = ()

    @property
    def rule(self) -> Rule:
        """The rule that offers it."""
        return self.match.rule


@dataclass(frozen=True)
class Failure:
    """A rule that offers nothing at a node, because it raised an exception or verification said no.

    Attributes:
        rule: its name.
        node: the node.
        reason: why.
    """

    rule: str
    node: Node
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} at {describe(self.node)}: {self.reason}"


@dataclass(frozen=True)
class Offers:
    """What rules offer over a graph; iterating gives the offers.

    Attributes:
        offers: in graph order for each rule, one rule after the other. Several may concern the same nodes.
        misses: where a rule began to match and did not.
        failures: matches of which nothing came.
    """

    offers: tuple[Offer, ...]
    misses: tuple[Miss, ...]
    failures: tuple[Failure, ...]

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers)

    def __len__(self) -> int:
        return len(self.offers)


def offers_in(
    graph: Graph, rules: Iterable[Rule], verifier: Verifier | None = None, exclude: Iterable[str] = ()
) -> Offers:
    """Find, check, build and verify the matches of rules, and splice none of them.

    Args:
        graph: only read. Dead code hides what others read; ``graph.eliminate_dead()`` clears it away before.
        rules: asked at every node of the graph.
        verifier: checks each offer; None accepts all.
        exclude: names of rules, and paths of modules, that are left alone.
    """
    excluded = frozenset(exclude)
    search = _Search(graph, Applier(graph, verifier, excluded))
    for rule in rules:
        if rule.name not in excluded:
            search.ask(rule)
    return Offers(tuple(search.offers), tuple(search.misses.values()), tuple(search.failures))


class _Search:
    """One call of :func:`offers_in`."""

    def __init__(self, graph: Graph, applier: Applier):
        self.graph, self.applier, self.sizes = graph, applier, Sizes(graph)
        self.offers: list[Offer] = []
        self.misses: dict[tuple[str, Node], Miss] = {}
        self.failures: list[Failure] = []

    def ask(self, rule: Rule) -> None:
        """Ask a rule at every node."""
        seen: set[tuple[Node, ...]] = set()
        for node in self.graph.nodes:
            try:
                found = list(rule.find(self.graph, (node,)))
            except Exception as error:
                self.failures.append(Failure(rule.name, node, f"find raised {type(error).__name__}: {error}"))
                return
            for item in found:
                if isinstance(item, Miss):
                    self.misses[rule.name, item.anchor] = item
                elif item.nodes not in seen:
                    seen.add(item.nodes)
                    self._take(item)

    def _take(self, match: Match) -> None:
        outcome = self.applier.prepare(match, 0)
        if isinstance(outcome, Prepared):
            self.offers.append(self._offer(outcome))
        elif isinstance(outcome, Failed):
            self.failures.append(Failure(match.rule.name, match.anchor, outcome.reason))
        else:
            self.misses[match.rule.name, outcome.anchor] = outcome

    def _offer(self, prepared: Prepared) -> Offer:
        match, old, new = prepared.match, prepared.old, prepared.new
        removed, added = printer.program(match.nodes), printer.program(new.calls())
        before, after = (work(_varying(self.graph, side), self.sizes) for side in (old, new))
        return Offer(match, old, new, tuple(removed), tuple(added), prepared.verdict, before, after,
                     self._crossovers(match))  # fmt: skip

    def _crossovers(self, match: Match) -> tuple[Crossover, ...]:
        try:
            return tuple(match.rule.crossovers(match))
        except Exception as error:  # the offer stands without
            reason = f"crossovers raised {type(error).__name__}: {error}"
            self.failures.append(Failure(match.rule.name, match.anchor, reason))
            return ()


def _varying(graph: Graph, fragment: Fragment) -> list[Node]:
    """The operators of a fragment that depend on more than weights and constants."""
    varying = {stand_in for node, stand_in in fragment.inputs.items() if not graph.is_constant(node)}
    for node in fragment.calls():
        if not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return [node for node in fragment.calls() if node in varying]
