"""The strategy for steps whose rules are choices: measure what they offer, decide for the whole program, make it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rewrite.events import emit
from rewrite.offering import Offer, offers_in
from rewrite.provenance import place
from rewrite.rule import Match
from rewrite.select.deciding import CONVERSIONS, Decision, decide
from rewrite.select.measuring import Survey
from rewrite.select.selected import Selected
from rewrite.select.sites import Site, Stopwatch
from rewrite.select.worlds import Worlds

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.driver import StepRun
    from rewrite.graph import Graph
    from rewrite.lowering import Lowering
    from rewrite.target import Target

_Offers = dict["Node", dict[str, Offer]]


@dataclass
class Selection:
    """Decides for one graph; a strategy of :class:`~rewrite.driver.Driver` for steps that are choices.

    Attributes:
        inputs: the flat inputs of the call that it decides for; only their metadata is read.
        lowering: what will run the program.
        target: measures.
        seconds: how long measuring may take in all; what is not measured by then stays as it is.
        progress: told how many operators of how many have been measured.
        choices: what was decided, and made.
        notes: what kept something from being chosen, a sentence each.
        complete: whether what has alternatives was measured, but for a few operators.
        made: how many rewrites were made.
        spent: the seconds that measuring and deciding took.
    """

    inputs: Sequence[Any]
    lowering: Lowering
    target: Target
    seconds: float = 30.0
    progress: Callable[[int, int], None] = lambda done, total: None
    choices: list[Selected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True
    made: int = 0
    spent: float = 0.0

    def __call__(self, run: StepRun) -> None:
        """Measure, decide and make what the rules of a step offer."""
        if run.out_of_fuel:
            return
        run.asks()
        started = time.perf_counter()
        offers, converting = self._offered(run)
        decisions, sites = self._decisions(run.graph, offers, converting)
        self.spent += time.perf_counter() - started
        for node, decision in decisions.items():
            choice = _selected(sites[node], decision)
            made = [name for name in decision.rules if _make(run, name, node, offers.get(node, {}).get(name))]
            self.made += len(made)
            if node in offers or made:
                self.choices.append(replace(choice, chosen=", ".join(made)))

    def drop(self) -> None:
        """Nothing of what was chosen is made after all."""
        self.choices = [replace(choice, chosen="") for choice in self.choices]

    def _offered(self, run: StepRun) -> tuple[_Offers, set[Node]]:
        """What rules offer for single values, and the operators whose inputs rules convert to either layout."""
        offers: _Offers = {}
        conversions: dict[Node, set[str]] = {}
        names = set(CONVERSIONS.values())
        rules = [rule for rule in run.rules if not (self.lowering.arranges and rule.name in names)]
        for offer in offers_in(run.graph, rules, exclude=run.exclude):
            if offer.rule.name in names:
                conversions.setdefault(offer.match.anchor, set()).add(offer.rule.name)
            elif len(offer.match.outputs) == 1:
                there = offers.setdefault(offer.match.outputs[0], {})
                if all(other.match.nodes == offer.match.nodes for other in there.values()):
                    there[offer.rule.name] = offer
        return offers, {node for node, found in conversions.items() if found == names}

    def _decisions(
        self, graph: Graph, offers: _Offers, converting: set[Node]
    ) -> tuple[dict[Node, Decision], dict[Node, Site]]:
        if not offers and not converting:
            return {}, {}
        try:
            worlds = Worlds.of(graph, self.inputs)
        except Exception as error:  # operators that do not run on fake tensors of fixed sizes
            self.notes.append(
                f"nothing was selected, for the program cannot be laid out: {type(error).__name__}: {error}"
            )
            return {}, {}
        survey = Survey(Stopwatch(graph, worlds, self.lowering, self.target), self.seconds, self.progress)
        survey.run(offers)
        self.notes += survey.notes
        self.complete = self.complete and survey.complete
        if not any(node in offers or node in converting for node in survey.found):
            return {}, {}
        return decide(graph, worlds, survey.found, converting, self.target.speeds), survey.found


def _make(run: StepRun, name: str, node: Node, offer: Offer | None) -> bool:
    """Make what a rule offered for a value, or finds at it; whether it was made."""
    rule = next((rule for rule in run.rules if rule.name == name), None)
    nodes = (node,) if offer is None else offer.match.nodes
    if rule is None or run.out_of_fuel or any(part.graph is not run.graph.fx or not part.users for part in nodes):
        return False
    anchor = node if offer is None else offer.match.anchor
    try:
        found = [match for match in rule.find(run.graph, (anchor,)) if isinstance(match, Match)]
    except Exception as error:  # a rule may be anybody's
        emit("selection-left", f"{name} at '{anchor.name}': find raised {type(error).__name__}: {error}", rule=name,
             node=anchor.name)  # fmt: skip
        return False
    match = next((match for match in found if match.nodes == nodes), None)
    return match is not None and run.applies(match, anchor)


def _selected(site: Site, decision: Decision) -> Selected:
    module, source, _ = place(site.node)
    ms = {name: cost.ms for name, cost in site.at(decision.layout).items()}
    return Selected(site.node.name, module, source, "", ms, site.noise)
