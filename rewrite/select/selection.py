"""The strategy for steps whose rules are choices: measure what they offer, decide for the whole program, make it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite.events import emit
from rewrite.offering import Offer, offers_in
from rewrite.ops import Convolution, view_as
from rewrite.provenance import place
from rewrite.rule import Match
from rewrite.select.deciding import CONVERSIONS, Decision, decide
from rewrite.select.selected import Selected
from rewrite.select.sites import AS_IT_IS, Site, Stopwatch, as_it_is
from rewrite.select.worlds import Worlds

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.driver import StepRun
    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.lowering import Lowering
    from rewrite.target import Target

_SMALL = 1 << 16
"""Bytes below which a value is converted for nothing, and an operator on it not measured for its layout."""


@dataclass
class Selection:
    """Decides for one graph; a strategy of :class:`~rewrite.driver.Driver` for steps that are choices.

    Attributes:
        inputs: the flat inputs of the call that it decides for; only their metadata is read.
        lowering: what will run the program.
        target: measures.
        seconds: how long measuring may take in all; what is not measured by then stays as it is.
        progress: told how many operators of how many have been measured.
        before: the graph as it was before anything was made, None until then.
        choices: what was decided.
        note: what kept something from being chosen, a sentence; '' where nothing did.
        position: of the step that chose first, in its pipeline.
        spent: the seconds that measuring and deciding took.
    """

    inputs: Sequence[Any]
    lowering: Lowering
    target: Target
    seconds: float = 30.0
    progress: Callable[[int, int], None] = lambda done, total: None
    before: Graph | None = None
    choices: list[Selected] = field(default_factory=list)
    note: str = ""
    position: int = 0
    spent: float = 0.0

    def __call__(self, run: StepRun) -> None:
        """Measure, decide and make what the rules of a step offer."""
        started = time.perf_counter()
        sides, converting = self._offered(run)
        decisions = self._decisions(run.graph, sides, converting)
        self.spent += time.perf_counter() - started
        if not any(decision.rules for decision in decisions.values()):
            return
        if self.before is None:
            self.before, self.position = run.graph.copy(), run.position
        for node, decision in decisions.items():
            for name in () if run.out_of_fuel else decision.rules:
                offer = sides.get(node, {}).get(name)
                nodes = (node,) if offer is None else offer.match.nodes
                _make(run, name, node if offer is None else offer.match.anchor, nodes)

    def _decisions(
        self, graph: Graph, sides: dict[Node, dict[str, Offer]], converting: set[Node]
    ) -> dict[Node, Decision]:
        if not sides and not converting:
            return {}
        try:
            worlds = Worlds.of(graph, self.inputs)
        except Exception as error:
            self.note = f"nothing was selected, for the program cannot be laid out: {type(error).__name__}: {error}"
            return {}
        sites = self._measured(graph, worlds, sides)
        if not any(node in sides or node in converting for node in sites):
            return {}
        speeds = self.target.speeds
        decisions = decide(graph, worlds, sites, converting, None if speeds is None else speeds.converted)
        for node, decision in decisions.items():
            if node in sides or decision.rules:
                self.choices.append(_selected(sites[node], decision))
        return decisions

    def _offered(self, run: StepRun) -> tuple[dict[Node, dict[str, Offer]], set[Node]]:
        """What rules offer for single operators, and the operators whose inputs a rule converts to another layout."""
        sides: dict[Node, dict[str, Offer]] = {}
        converting: set[Node] = set()
        conversions = CONVERSIONS.values()
        rules = [rule for rule in run.rules if not (self.lowering.arranges and rule.name in conversions)]
        for offer in offers_in(run.graph, rules):
            if offer.rule.name in conversions:
                converting.add(offer.match.anchor)
            elif len(offer.match.outputs) == 1:
                there = sides.setdefault(offer.match.outputs[0], {})
                if all(other.match.nodes == offer.match.nodes for other in there.values()):
                    there[offer.rule.name] = offer
        return sides, converting

    def _measured(self, graph: Graph, worlds: Worlds, sides: dict[Node, dict[str, Offer]]) -> dict[Node, Site]:
        """The operators that have alternatives, or whose time depends on the layout, as far as there is time."""
        sites = [
            Site(node, _fragments(node, sides.get(node, {})))
            for node in graph.calls()
            if node in sides or _has_layout(graph, worlds, node)
        ]
        # those with alternatives first, and of these the largest
        sites.sort(key=lambda site: (site.node not in sides, -worlds.bytes(site.node)))
        started, found, busy = time.perf_counter(), {}, 0
        stopwatch = Stopwatch(graph, worlds, self.lowering, self.target)
        for done, site in enumerate(sites):
            self.progress(done, len(sites))
            if time.perf_counter() - started > self.seconds:
                self.note = f"{len(sites) - done} of {len(sites)} operators were not measured in {self.seconds:g} s"
                break
            try:
                if stopwatch.measure(site):
                    found[site.node] = site
                else:
                    busy += 1
            except Exception as error:
                emit("site-left", f"'{site.node.name}' cannot be measured: {type(error).__name__}: {error}")
        self.progress(len(sites), len(sites))
        if busy:
            self.note = f"the machine was too busy to measure {busy} of {len(sites)} operators, which stay as they are"
        return found


def _make(run: StepRun, name: str, node: Node, nodes: tuple[Node, ...]) -> None:
    """Make what a rule finds at a node for just these nodes."""
    rule = next(rule for rule in run.rules if rule.name == name)
    for match in list(rule.find(run.graph, (node,))):
        if isinstance(match, Match) and match.nodes == nodes:
            run.apply(match, node)
            return


def _fragments(node: Node, offers: Mapping[str, Offer]) -> dict[str, Fragment]:
    """What computes a value, as it is and as rules would have it."""
    first = next(iter(offers.values()), None)
    there = as_it_is(node) if first is None else first.old
    return {AS_IT_IS: there, **{name: offer.new for name, offer in offers.items()}}


def _has_layout(graph: Graph, worlds: Worlds, node: Node) -> bool:
    """Whether an operator's time may depend on the layout of what it reads, and is worth to be measured."""
    if graph.is_constant(node) or _follows(node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    if view_as(node, Convolution) is not None and worlds.differs(node):
        return True
    return any(worlds.differs(operand) and worlds.bytes(operand) >= _SMALL for operand in node.all_input_nodes)


def _follows(node: Node) -> bool:
    """Whether an operator hands on the layout of what it reads, and a compiler fuses it or makes nothing of it."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    return target.is_view or torch.Tag.pointwise in target.tags or target._opname in ("clone", "cat", "dropout")


def _selected(site: Site, decision: Decision) -> Selected:
    module, source, _ = place(site.node)
    costs = site.costs.get(decision.layout) or next(iter(site.costs.values()))
    ms = {name: cost.ms for name, cost in costs.items()}
    return Selected(site.node.name, module, source, ", ".join(decision.rules), ms, site.noise)
