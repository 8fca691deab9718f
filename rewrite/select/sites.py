"""Operators that have alternatives or a layout, and what each alternative takes in each layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from rewrite.events import emit
from rewrite.fragment import Fragment
from rewrite.select.rehearsal import Rehearsal, rehearsal
from rewrite.select.worlds import LAYOUTS, Layout, Worlds, order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Node

    from rewrite.graph import Graph
    from rewrite.lowering import Lowering
    from rewrite.target import Target

T = TypeVar("T")

AS_IT_IS = ""
"""The name of the alternative that leaves an operator as it is."""


@dataclass(frozen=True)
class Cost:
    """What an alternative takes for inputs in one layout.

    Attributes:
        ms: the time of a call, the lower quartile of those measured.
        layout: of the result; None where it is the same in both worlds, or like neither.
    """

    ms: float
    layout: Layout | None


@dataclass
class Site:
    """An operator with its alternatives.

    Attributes:
        node: the operator.
        sides: for each alternative, by the name of its rule, the fragment that computes the same.
        costs: for each layout of the inputs that there is, what each alternative takes; filled by measuring.
        noise: the largest difference of an alternative from itself in these measurements, relative.
    """

    node: Node
    sides: Mapping[str, Fragment]
    costs: dict[Layout, dict[str, Cost]] = field(default_factory=dict)
    noise: float = 0.0

    def at(self, layout: Layout) -> dict[str, Cost]:
        """What each alternative takes for inputs in a layout; where they have none, there is one answer."""
        return self.costs[layout if layout in self.costs else Layout.FIRST]

    def layouts(self, worlds: Worlds) -> tuple[Layout, ...]:
        """The layouts in which the inputs may be."""
        return LAYOUTS if any(worlds.differs(node) for node in self.node.all_input_nodes) else (Layout.FIRST,)


@dataclass(frozen=True)
class Stopwatch:
    """Measures the sites of one program; what has been measured is not measured again.

    Attributes:
        graph: the program.
        worlds: its values in both layouts.
        lowering: whose kernels are timed.
        target: the device.
    """

    graph: Graph
    worlds: Worlds
    lowering: Lowering
    target: Target
    _known: dict[str, tuple[dict[str, Cost], float]] = field(default_factory=dict, init=False)

    def measure(self, site: Site) -> bool:
        """Measure every alternative in every layout; False, and no costs, where the machine is too busy to tell.

        Alternatives that cannot be run are left out.

        Raises:
            Exception: whatever the operator raises as it is.
        """
        for layout in site.layouts(self.worlds):
            found = self._measure(site, layout)
            if found is None:
                site.costs.clear()
                return False
            site.costs[layout], noise = found
            site.noise = max(site.noise, noise)
        return True

    def _measure(self, site: Site, layout: Layout) -> tuple[dict[str, Cost], float] | None:
        parts = {name: part for name, side in site.sides.items() if (part := self._part(site, name, side, layout))}
        what = f"{self.lowering.name}: " + " | ".join(f"{name} {part.key}" for name, part in parts.items())
        ways = [order(value) for value in self._ways(site.node)]
        key = f"{what} {ways}"
        if key not in self._known:
            calls = {name: call for name, part in parts.items() if (call := self._call(site, name, part))}
            results = {name: self._layout(site.node, call()[0]) for name, call in calls.items()}
            found = self.target.measure(what, calls)
            if found is None:
                return None
            self._known[key] = {name: Cost(found.ms[name], results[name]) for name in calls}, found.noise
        return self._known[key]

    def _part(self, site: Site, name: str, side: Fragment, layout: Layout) -> Rehearsal | None:
        return self._attempt(site, name, lambda: rehearsal(self.graph, side, self.worlds.values[layout]))

    def _call(self, site: Site, name: str, part: Rehearsal) -> _Bound | None:
        def prepared() -> _Bound:
            call = _Bound(self.lowering.rehearse(part.module), part.inputs)
            call()
            return call

        return self._attempt(site, name, prepared)

    def _attempt(self, site: Site, name: str, make: Callable[[], T]) -> T | None:
        try:
            with torch.no_grad():
                return make()
        except Exception as error:  # an operator that has no kernel for this
            if name == AS_IT_IS:
                raise
            emit("alternative-left", f"'{name}' at '{site.node.name}' cannot be run: {error}", rule=name,
                 node=site.node.name)  # fmt: skip
            return None

    def _ways(self, node: Node) -> list[Tensor]:
        values = [self.worlds.value(node, layout) for layout in LAYOUTS]
        return [value for value in values if isinstance(value, Tensor)]

    def _layout(self, node: Node, result: Any) -> Layout | None:
        """The world in which a result lies as it came out."""
        if not isinstance(result, Tensor) or not self.worlds.differs(node):
            return None
        return next((layout for layout in LAYOUTS if order(self.worlds.value(node, layout)) == order(result)), None)


@dataclass(frozen=True)
class _Bound:
    call: Any
    inputs: tuple[Any, ...]

    def __call__(self) -> Any:
        with torch.no_grad():
            return self.call(*self.inputs)


def as_it_is(node: Node) -> Fragment:
    """The fragment of one operator."""
    fragment = Fragment()
    mapping: dict[Node, Node] = {}
    for operand in node.all_input_nodes:
        stand_in = fragment.fx.placeholder(operand.name)
        stand_in.meta = dict(operand.meta)
        mapping[operand] = fragment.inputs[operand] = stand_in
    fragment.outputs = (fragment.fx.node_copy(node, mapping.__getitem__),)
    return fragment
