"""Which operators of a program are measured, in which order, within which time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewrite.events import emit
from rewrite.graph import is_random
from rewrite.ops import Convolution, view_as
from rewrite.select.sites import AS_IT_IS, Site, Stopwatch, as_it_is

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.offering import Offer
    from rewrite.select.worlds import Worlds

_SMALL = 1 << 16
"""Bytes below which a value is converted for nothing, and an operator on it not measured for its layout."""

_FEW = 1 / 20
"""The part of the operators with alternatives that may be left as they are in a program worth keeping."""


@dataclass
class Survey:
    """The sites of one program and what they take.

    Attributes:
        stopwatch: measures them.
        seconds: how long that may take in all, about.
        progress: told how many operators of how many have been measured.
        found: what has been measured.
        notes: what could not be, a sentence each.
        complete: whether the operators with alternatives were measured, but for a few.
    """

    stopwatch: Stopwatch
    seconds: float
    progress: Callable[[int, int], None]
    found: dict[Node, Site] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    def run(self, offers: Mapping[Node, Mapping[str, Offer]]) -> None:
        """Measure the operators that have alternatives, or whose time depends on the layout.

        Args:
            offers: the alternatives by the value that they compute and the name of their rule.
        """
        graph, worlds = self.stopwatch.graph, self.stopwatch.worlds
        sites = [
            Site(node, _fragments(node, offers.get(node, {})))
            for node in graph.calls()
            if node in offers or _has_layout(graph, worlds, node)
        ]
        # those with alternatives first, and of these the largest
        sites.sort(key=lambda site: (site.node not in offers, -worlds.bytes(site.node)))
        ends = time.perf_counter() + self.seconds
        try:
            busy, late = self._measured(sites, len(sites), ends)
            if busy:  # a moment may have passed
                busy, more = self._measured(busy, len(sites), ends)
                late += more
        finally:
            self.progress(len(sites), len(sites))
        self._note(len(sites), len(busy), len(late))
        left = sum(site.node in offers for site in (*busy, *late))
        self.complete = left <= _FEW * sum(site.node in offers for site in sites)

    def _measured(self, sites: list[Site], total: int, ends: float) -> tuple[list[Site], list[Site]]:
        """Measure sites; those for which the machine was too busy, and those for which there was no time."""
        busy: list[Site] = []
        for i, site in enumerate(sites):
            self.progress(len(self.found), total)
            if time.perf_counter() >= ends:
                return busy, sites[i:]
            try:
                if self.stopwatch.measure(site):
                    self.found[site.node] = site
                else:
                    busy.append(site)
            except Exception as error:  # an operator without a kernel for what was drawn
                emit("site-left", f"'{site.node.name}' cannot be measured: {type(error).__name__}: {error}",
                     node=site.node.name)  # fmt: skip
        return busy, []

    def _note(self, total: int, busy: int, late: int) -> None:
        if busy:
            self.notes.append(
                f"the machine was too busy to measure {busy} of {total} operators, which stay as they are"
            )
        if late:
            self.notes.append(
                f"{late} of {total} operators were not measured in {self.seconds:g} s, and stay as they are"
            )


def _fragments(node: Node, offers: Mapping[str, Offer]) -> dict[str, Fragment]:
    """What computes a value, as it is and as rules would have it."""
    first = next(iter(offers.values()), None)
    there = as_it_is(node) if first is None else first.old
    return {AS_IT_IS: there, **{name: offer.new for name, offer in offers.items()}}


def _has_layout(graph: Graph, worlds: Worlds, node: Node) -> bool:
    """Whether an operator's time may depend on the layout of what it reads, and is worth to be measured."""
    if graph.is_constant(node) or _follows(node) or is_random(node) or not isinstance(node.meta.get("val"), Tensor):
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
