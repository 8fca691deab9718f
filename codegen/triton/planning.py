"""Which regions of a graph become kernels: those that save the most predicted time, with the reasons for all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import torch

from codegen.triton.device import Device, Work, total
from codegen.triton.family import Candidate, Family, families
from codegen.triton.region import Main, Region, is_view, reach
from codegen.triton.traffic import separate
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import Graph, Node

LARGEST = 2**31
"""Elements of a sample: kernels count within one with 32 bits."""

MARGIN = 0.05
"""The part of its predicted time that a region has to save: predictions are no better than that."""


@dataclass(frozen=True)
class Planned:
    """A region that becomes a kernel.

    Attributes:
        region: what is fused.
        candidates: its kernels, the one that should be fastest first.
        seconds: what that takes, as predicted.
        parts: what its operators take as kernels of their own.
        bound: what it is bound by: bytes, the first cache, plain or special instructions, tensor cores, or the launch.
        saved: bytes that need not be moved.
        library: what libraries' kernels do in place of the main operator.
    """

    region: Region
    candidates: Sequence[Candidate]
    seconds: float
    parts: float
    bound: str
    saved: float
    library: tuple[Work, ...] = ()

    @property
    def gain(self) -> float:
        """Seconds."""
        return self.parts - self.seconds

    def __str__(self) -> str:
        region = self.region
        chain = " -> ".join([*map(_short, region.prologue), str(region.main), *map(_short, region.epilogue),
                             *map(_short, region.totals)])  # fmt: skip
        schedules = ", ".join(self.candidates[0].schedules)
        return (
            f"{region.main.node.name}: {chain}\n    {schedules}; {1e6 * self.seconds:.1f} us, bound by {self.bound}; "
            f"its parts {1e6 * self.parts:.1f} us; saves {self.saved / 1e6:.2f} MB"
        )


@dataclass(frozen=True)
class Declined:
    """An operator that could have been one's main operator, and why it is not."""

    node: Node
    reason: str

    def __str__(self) -> str:
        return f"{self.node.name}: {self.reason}"


@dataclass(frozen=True)
class KernelPlan:
    """What is fused in a graph, what is not, and why.

    Attributes:
        device: whose rates the predictions are for.
        regions: in the order of the graph.
        declined: operators that stay as they are.
    """

    device: Device
    regions: tuple[Planned, ...]
    declined: tuple[Declined, ...]

    @property
    def gain(self) -> float:
        """Seconds that all of them save, as predicted."""
        return sum(each.gain for each in self.regions)

    def __str__(self) -> str:
        lines = [f"{len(self.regions)} kernels on {self.device.name}, {1e6 * self.gain:.1f} us saved as predicted"]
        lines += [f"  {each}" for each in self.regions]
        lines += [f"  not {each}" for each in self.declined]
        return "\n".join(lines)


def planned(
    graph: Graph, device: Device, kinds: Sequence[Family] | None = None, elementwise: bool = False
) -> KernelPlan:
    """The plan for a flat graph with recorded values of fixed sizes.

    Args:
        graph: not changed.
        device: predicted for.
        kinds: families to use; None for all that are registered.
        elementwise: only kernels in which NaN and infinities stay where the operators leave them.
    """
    options: list[Planned] = []
    declined: list[Declined] = []
    for family in families() if kinds is None else kinds:
        declined += [Declined(node, reason) for node in graph.nodes if (reason := family.why_not(node))]
        for main in family.mains(graph):
            found = list(_options(family, main, device, elementwise))
            if not found:
                declined.append(Declined(main.node, "no kernel of it fits the device"))
            paying = [each for each in found if each.gain > MARGIN * each.parts]
            if found and not paying:
                best = max(found, key=lambda each: each.gain)
                declined.append(Declined(main.node, _too_slow(best)))
            options += paying
    chosen = _disjoint(graph, options)
    taken = {node for each in chosen for node in each.region.nodes}
    crossed = {each.region.main.node for each in options} - taken
    declined = [each for each in declined if each.node not in taken]
    declined += [Declined(node, "its operators are part of another kernel") for node in crossed]
    order = {node: i for i, node in enumerate(graph.nodes)}
    ordered = sorted(chosen, key=lambda each: order[each.region.main.node])
    return KernelPlan(device, tuple(ordered), tuple(sorted(declined, key=lambda each: order[each.node])))


def _too_slow(best: Planned) -> str:
    return (
        f"the best kernel takes {1e6 * best.seconds:.1f} us, bound by {best.bound}, and its operators "
        f"{1e6 * best.parts:.1f} us"
    )


def _options(family: Family, main: Main, device: Device, elementwise: bool) -> Iterator[Planned]:
    """The regions around a main operator with what each of them saves.

    All of them are compared as parts of the largest one: what a smaller region leaves out is a kernel of its own.
    """
    found = [region for region in family.regions(main) if reach(region) < LARGEST]
    if not found:
        return
    whole = max(found, key=lambda region: len(region.nodes))
    library = family.library(whole.main)
    kind = value(whole.main.input).dtype
    for region in found:
        candidates = family.candidates(region, device, elementwise)
        if not candidates:
            continue
        before, behind = _groups(whole, region)
        inner = [separate(nodes) for nodes in (region.prologue, (*region.epilogue, *region.totals)) if _computes(nodes)]
        outer = [separate(nodes) for nodes in (before, behind) if _computes(nodes)]
        apart = [separate(nodes) for nodes in (whole.prologue, (*whole.epilogue, *whole.totals)) if _computes(nodes)]
        # parts of a sum are added by a kernel of their own
        seconds = device.seconds(candidates[0].work, kind) + device.launch * len(region.totals)
        parts = _seconds(device, [*library, *apart], kind) - _seconds(device, outer, kind)
        saved = total([*library, *inner]).bytes - candidates[0].work.bytes
        bound = device.bound(candidates[0].work, kind)
        yield Planned(region, candidates, seconds, parts, bound, saved, tuple(library))


def _groups(whole: Region, region: Region) -> tuple[list[Node], list[Node]]:
    """What a region leaves of a larger one in front of it and behind it."""
    inside = set(region.nodes)
    behind = (*whole.epilogue, *whole.totals)
    return [node for node in whole.prologue if node not in inside], [node for node in behind if node not in inside]


def _computes(nodes: Sequence[Node]) -> bool:
    """Whether nodes take a kernel."""
    return any(not is_view(node) for node in nodes)


def _seconds(device: Device, works: Sequence[Work], kind: torch.dtype) -> float:
    return sum(device.seconds(work, kind) for work in works)


def _disjoint(graph: Graph, options: Sequence[Planned]) -> list[Planned]:
    """Regions without common operators that can be computed one after the other; those that save most come first."""
    edges = [(source, node) for node in graph.nodes for source in node.all_input_nodes]
    chosen: list[Planned] = []
    taken: set[Node] = set()
    mains: set[Node] = set()
    for option in sorted(options, key=lambda each: -each.gain):
        main = option.region.main.node
        if main in mains or not taken.isdisjoint(option.region.nodes):
            continue
        if not _is_ordered(edges, [*(each.region for each in chosen), option.region]):
            continue
        chosen.append(option)
        mains.add(main)
        taken.update(option.region.nodes)
    return chosen


def _is_ordered(edges: Sequence[tuple[Node, Node]], regions: Sequence[Region]) -> bool:
    """Whether there is an order in which regions and single nodes can be computed, each of them whole."""
    owner = {node: i for i, region in enumerate(regions) for node in region.nodes}
    quotient = nx.DiGraph()
    for source, node in edges:
        a, b = owner.get(source, source), owner.get(node, node)
        if a != b:
            quotient.add_edge(a, b)
    return bool(nx.is_directed_acyclic_graph(quotient))


def _short(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]
