"""From measurements to decisions: the costs of a whole program, its cheapest layouts, and what follows at each site."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from rewrite.select.energy import NEVER, Energy
from rewrite.select.sites import AS_IT_IS
from rewrite.select.worlds import LAYOUTS, Layout, Worlds, order, recorded_order

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rewrite.graph import Graph
    from rewrite.select.sites import Site
    from rewrite.target import Speeds

LEAST_MARGIN = 0.03
"""An alternative has to be faster by so much at least, whatever the noise: parts are timed by themselves."""

_BYTES_PER_SECOND = 2e9
"""What a conversion reads and writes on a machine that was too busy to be measured."""

CONVERSIONS: Mapping[Layout, str] = {Layout.FIRST: "channels-first", Layout.LAST: "channels-last"}
"""The rules that convert what a convolution reads, by the layout that they convert to."""


@dataclass(frozen=True)
class Decision:
    """What is made at one site.

    Attributes:
        rules: the names of the rules, in the order in which they are made; empty where it stays as it is.
        layout: of its inputs.
    """

    rules: tuple[str, ...]
    layout: Layout


def decide(
    graph: Graph, worlds: Worlds, sites: Mapping[Node, Site], converting: Collection[Node], speeds: Speeds | None
) -> dict[Node, Decision]:
    """The decisions that together take the least time.

    Args:
        graph: the program.
        worlds: its values in both layouts.
        sites: what has been measured.
        converting: operators whose inputs can be converted to another layout by a rewrite.
        speeds: of the device; None where they are not known.
    """
    problem = _Problem(graph, worlds, sites, converting, speeds)
    _, labels = problem.energy.minimize()
    return {node: problem.decision(site, labels) for node, site in sites.items()}


class _Problem:
    """The costs of one program over the layouts of its values."""

    def __init__(
        self,
        graph: Graph,
        worlds: Worlds,
        sites: Mapping[Node, Site],
        converting: Collection[Node],
        speeds: Speeds | None,
    ):
        self.graph, self.worlds, self.sites, self.speeds = graph, worlds, sites, speeds
        self.energy = Energy()
        self.ports: dict[Node, object] = {}  # the layout in which a site reads its inputs
        for node in graph.inputs:
            if worlds.differs(node):  # it lies as it is given
                self.energy.add(node, 0, NEVER)
        for node in graph.calls():
            if graph.is_constant(node):
                continue
            if node in sites:
                self.site(sites[node], node in converting)
            else:
                self.other(node)
        self.results()
        for value in graph.nodes:
            readers = [("port", user) for user in value.users if self.ports.get(user) == ("port", user)]
            if readers and worlds.differs(value):
                self.energy.add_conversion(value, readers, self.conversion(value))

    def conversion(self, value: Node) -> int:
        """Nanoseconds of a conversion of a value from one layout to the other."""
        size = self.worlds.bytes(value)
        return round(1e9 * (2 * size / _BYTES_PER_SECOND if self.speeds is None else self.speeds.conversion(size)))

    def variables(self, node: Node) -> list[Node]:
        """The operands that have a layout; of one of several results, those of what gives them."""
        source = node.args[0] if node.target is operator.getitem else node
        assert isinstance(source, Node)
        return [operand for operand in source.all_input_nodes if self.worlds.differs(operand)]

    def site(self, site: Site, converts: bool) -> None:
        node, operands = site.node, self.variables(site.node)
        if operands:
            self.ports[node] = ("port", node) if converts else operands[0]
            if not converts:
                for operand in operands[1:]:
                    self.energy.add_pair(operands[0], operand, self.unequal(self.conversion(operand)))
        port = self.ports.get(node)
        if self.worlds.differs(node):
            table = tuple(tuple(self.least(site, source, result) for result in LAYOUTS) for source in LAYOUTS)
            if port is None:
                self.energy.add(node, *table[0])
            else:
                self.energy.add_pair(port, node, table)  # type: ignore[arg-type]
        elif port is not None:
            self.energy.add(port, self.least(site, Layout.FIRST, None), self.least(site, Layout.LAST, None))

    def least(self, site: Site, source: Layout, result: Layout | None) -> int:
        name = self.best(site, source, result)
        return NEVER if name is None else round(1e6 * self.weighed(site, source, name))

    def best(self, site: Site, source: Layout, result: Layout | None) -> str | None:
        """The alternative that takes least from one layout to another; None where none leads there."""
        fits = [name for name, cost in site.at(source).items() if result is None or cost.layout in (None, result)]
        return min(fits, key=lambda name: self.weighed(site, source, name), default=None)

    @staticmethod
    def weighed(site: Site, source: Layout, name: str) -> float:
        """Milliseconds, with the margin by which an alternative has to be faster."""
        return site.at(source)[name].ms * (1 if name == AS_IT_IS else 1 + max(site.noise, LEAST_MARGIN))

    def other(self, node: Node) -> None:
        """An operator that was not measured hands on the layout of its first operand, and converts the others."""
        pointwise = _is_pointwise(node)
        for place, operand in enumerate(self.variables(node)):
            if self.worlds.differs(node):
                converts = pointwise and place > 0
                self.energy.add_pair(operand, node, self.unequal(self.conversion(operand) if converts else NEVER))
            elif pointwise:
                value = self.worlds.value(node, Layout.FIRST)
                ways = [self.worlds.value(operand, layout) for layout in LAYOUTS]
                if isinstance(value, Tensor) and ways[0].shape == value.shape:
                    self.energy.add(operand, *(self.conversion(operand) * (order(way) != order(value)) for way in ways))

    @staticmethod
    def unequal(cost: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return ((0, cost), (cost, 0))

    def results(self) -> None:
        """What is returned has the strides that were recorded, and is copied where it would have others."""
        for value in self.graph.outputs:
            if isinstance(value, Node) and self.worlds.differs(value):
                wanted = recorded_order(value.meta["val"])
                ways = [order(self.worlds.value(value, layout)) for layout in LAYOUTS]
                if wanted in ways:
                    self.energy.add(value, *(self.conversion(value) * (way != wanted) for way in ways))

    def decision(self, site: Site, labels: Mapping[object, int]) -> Decision:
        node = site.node
        port = self.ports.get(node)
        source = Layout(labels[port]) if port is not None else Layout.FIRST
        result = Layout(labels[node]) if self.worlds.differs(node) else None
        name = self.best(site, source, result) or AS_IT_IS
        converts = port == ("port", node) and any(labels[operand] != source for operand in self.variables(node))
        if converts and site.costs[source][AS_IT_IS].layout in (None, result):
            return Decision((CONVERSIONS[source],), source)
        return Decision((name,) if name else (), source)


def _is_pointwise(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
