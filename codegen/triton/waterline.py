"""What a whole program takes on a GPU, kernel by kernel, as predicted: with the kernels of a plan and without.

The waterline (Lavin, 2024, "On the Efficiency of ConvNets") is the roofline of a sequence of kernels: each takes at
least its operations at the peak rate and its bytes at that of memory, and the efficiency that a program can attain is
the time of its operations at the peak rate relative to the sum of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import networkx as nx
import torch

from codegen.triton.device import Device, Work
from codegen.triton.pointwise import printable
from codegen.triton.region import is_view
from codegen.triton.traffic import separate, size
from rewrite.flops import Sizes, flops
from rewrite.ops import BatchNorm, Cast, Copy, GroupNorm, LayerNorm, RMSNorm, Softmax, is_tensor, reduction, view

if TYPE_CHECKING:
    from torch.fx import Graph as FlatGraph
    from torch.fx import Node

    from codegen.triton.planning import KernelPlan, Planned
    from rewrite.graph import Graph

_SIZES = Sizes(cast("Graph", SimpleNamespace(inputs=())))  # of numbers only
_FUSED = (BatchNorm, Cast, Copy, GroupNorm, LayerNorm, RMSNorm, Softmax)


@dataclass(frozen=True)
class Step:
    """One kernel of a program.

    Attributes:
        name: of its result.
        seconds: as predicted.
        bytes: that it moves.
        operations: floating-point operations of the operators, however it computes them.
        fused: whether it is a kernel of a plan.
    """

    name: str
    seconds: float
    bytes: float
    operations: float
    fused: bool = False


@dataclass(frozen=True)
class Forecast:
    """The kernels of a program.

    Attributes:
        steps: in order.
        device: what they run on.
        dtype: of what tensor cores multiply.
    """

    steps: tuple[Step, ...]
    device: Device
    dtype: torch.dtype

    @property
    def seconds(self) -> float:
        """Of all of them."""
        return sum(step.seconds for step in self.steps)

    @property
    def bytes(self) -> float:
        """That all of them move."""
        return sum(step.bytes for step in self.steps)

    @property
    def floor(self) -> float:
        """The least seconds that the waterline leaves to these kernels."""
        peak = self.device.tensor[self.dtype]
        return sum(max(step.operations / peak, step.bytes / self.device.copy) for step in self.steps)

    @property
    def attainable(self) -> float:
        """The efficiency that the waterline leaves to these kernels, from 0 to 1."""
        return sum(step.operations for step in self.steps) / self.device.tensor[self.dtype] / self.floor


def forecast(graph: FlatGraph, plan: KernelPlan, dtype: torch.dtype, fused: bool) -> Forecast:
    """The kernels of a flat graph with recorded values.

    Args:
        graph: not changed.
        plan: of this graph.
        dtype: of the program.
        fused: whether the plan's regions are kernels, else their main operators are a library's.
    """
    device = plan.device
    mains = {planned.region.main.node: planned for planned in plan.regions}
    taken = {node for each in plan.regions for node in (each.region.nodes if fused else each.region.main.nodes)}
    steps: list[Step] = []
    for planned in mains.values():
        steps += _of_region(planned, device, dtype) if fused else _of_library(planned, device, dtype)
    for group in _groups(graph, taken):
        work = separate(group)
        steps.append(_step(group[-1].name, work, sum(map(_operations, group)), device, dtype))
    for node in graph.nodes:
        if node not in taken and _is_alone(node):
            operations = _operations(node)
            moved = size([node, *(each for each in node.all_input_nodes if is_tensor(each))])
            work = Work(bytes=moved, tensor=operations)
            steps.append(_step(node.name, work, operations, device, dtype))
    return Forecast(tuple(steps), device, dtype)


def _of_region(planned: Planned, device: Device, dtype: torch.dtype) -> Iterator[Step]:
    work = planned.candidates[0].work
    operations = sum(map(_operations, planned.region.nodes))
    yield Step(planned.region.main.node.name, device.seconds(work, dtype), work.bytes, operations, True)


def _of_library(planned: Planned, device: Device, dtype: torch.dtype) -> Iterator[Step]:
    works = planned.library
    operations = sum(map(_operations, planned.region.main.nodes))
    for number, work in enumerate(works):
        yield _step(planned.region.main.node.name, work, 0.0 if number else operations, device, dtype)


def _step(name: str, work: Work, operations: float, device: Device, dtype: torch.dtype) -> Step:
    return Step(name, device.seconds(work, dtype), work.bytes, operations)


def _operations(node: Node) -> float:
    return float(flops(node, _SIZES))


def _fuses(node: Node) -> bool:
    """Whether a general compiler fuses an operator with its neighbours."""
    if node.op != "call_function" or not is_tensor(node):
        return False
    return is_view(node) or printable(node) or isinstance(view(node), _FUSED) or reduction(node) is not None


def _is_alone(node: Node) -> bool:
    """Whether an operator is a kernel of its own."""
    return node.op == "call_function" and is_tensor(node) and not _fuses(node)


def _groups(graph: FlatGraph, taken: set[Node]) -> Iterator[Sequence[Node]]:
    """Operators that a general compiler makes one kernel of: those that follow each other."""
    fusable = nx.Graph()
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node in taken or not _fuses(node):
            continue
        fusable.add_node(node)
        fusable.add_edges_from((each, node) for each in node.all_input_nodes if each not in taken and _fuses(each))
    for group in nx.connected_components(fusable):
        if not all(map(is_view, group)):
            yield sorted(group, key=order.__getitem__)
