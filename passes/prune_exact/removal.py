"""The removal of channels from a flow: what is left of each value, which operators change, and how they are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.memory import reader_of_strides
from passes.prune_exact.ends import Reading, Vectors, groups, rows, smaller
from passes.prune_exact.maps import Added
from passes.prune_exact.select import Picker
from passes.prune_exact.steps import placed, replay
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.fx import Node

    from passes.prune_exact.ends import Layer
    from passes.prune_exact.flow import Flow
    from rewrite.fragment import Builder

aten = torch.ops.aten


def settle(flow: Flow, wanted: Iterable[int]) -> tuple[set[int], dict[int, Refusal]]:
    """Those of the wanted classes that can go together, and why others cannot.

    Every value keeps a channel, and the groups of a convolution stay equal.
    """
    removed = set(wanted)
    blocked: dict[int, Refusal] = {}
    while True:
        spared = _last(flow, removed) or _unequal(flow, removed)
        if not spared:
            return removed, blocked
        removed -= spared.keys()
        blocked |= spared


def _last(flow: Flow, removed: set[int]) -> dict[int, Refusal]:
    for node, classes in flow.classes.items():
        if classes and removed.issuperset(classes):
            return {classes[0]: Refusal(f"it is the last channel of {called(node)}", node,
                                        f"leave {called(node)} out of the model")}  # fmt: skip
    return {}


def _unequal(flow: Flow, removed: set[int]) -> dict[int, Refusal]:
    for node, layer in flow.sources.items():
        count, classes = groups(layer), flow.classes[node]
        size = len(classes) // count
        lost = [sum(k in removed for k in classes[i : i + size]) for i in range(0, len(classes), size)] if size else []
        if len(set(lost)) > 1:
            refusal = Refusal(f"the {count} groups of the convolution would be unequal", node,
                              f"set groups=1 in {called(node)}")  # fmt: skip
            return {k: refusal for k in classes if k in removed}
    return {}


@dataclass(frozen=True, eq=False)
class Removal:
    """Classes of channels that go, and what that changes.

    Attributes:
        flow: the flow.
        kept: the channels of each value that stay.
        readings: for the layers that read a value that changes, what becomes of their input channels.
        nodes: the operators that change, and those on a way from one to another.
        outputs: of these, those that others read.
    """

    flow: Flow
    kept: Mapping[Node, list[int]]
    readings: Mapping[Node, Reading]
    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @classmethod
    def of(cls, flow: Flow, removed: set[int], reading: Callable[[Layer, list[int]], Reading]) -> Removal:
        """The removal of classes; ``reading`` says what a layer makes of its input channels, given those that stay."""
        kept = {node: [i for i, k in enumerate(own) if k not in removed] for node, own in flow.classes.items()}
        changed = {node for node, left in kept.items() if len(left) < flow.channels(node)}
        nodes = {node for node in changed if node in flow.sources}
        for made in flow.steps.values():
            if made.node in changed or any(operand in changed for operand in made.operands):
                nodes.update(made.view.nodes)
        readings = {
            node: reading(layer, kept[layer.input]) for node, layer in flow.readers.items() if layer.input in changed
        }
        nodes.update(readings)
        nodes |= _between(nodes)
        outputs = [node for node in nodes if any(user not in nodes for user in node.users)]
        return cls(flow, kept, readings, tuple(sorted(nodes)), tuple(sorted(outputs)))

    def changes(self, node: Node) -> bool:
        """Whether a value loses channels."""
        return node in self.kept and len(self.kept[node]) < self.flow.channels(node)

    def refusal(self) -> Refusal | None:
        """Why the outputs cannot take the place of the model's: somebody sees that their strides are others."""
        for node in self.outputs:
            seen = reader_of_strides(node) if node in self.flow.steps else None
            if seen is not None:
                return Refusal(f"the strides of {called(node)} would be others, and {called(seen)} sees them", node,
                               f"call contiguous() on {called(node)}")  # fmt: skip
        return None

    def build(self, g: Builder) -> list[Node]:
        """The outputs, computed from fewer channels."""
        return _Building(self, Picker(g)).outputs()


def _between(nodes: set[Node]) -> set[Node]:
    """What lies on a way that leaves a set of nodes and comes back."""
    last = max(nodes)
    after = _reach(nodes, lambda node: [user for user in node.users if user < last])
    before: set[Node] = set()
    stack = [operand for node in nodes for operand in node.all_input_nodes if operand in after]
    while stack:
        node = stack.pop()
        if node not in before:
            before.add(node)
            stack += [operand for operand in node.all_input_nodes if operand in after]
    return before


def _reach(nodes: set[Node], neighbours: Callable[[Node], list[Node]]) -> set[Node]:
    """What can be reached from a set of nodes, without these."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        fresh = [node for node in neighbours(stack.pop()) if node not in nodes and node not in found]
        found.update(fresh)
        stack += fresh
    return found


class _Building:
    """Builds what a removal leaves."""

    def __init__(self, removal: Removal, g: Picker):
        self.removal, self.flow, self.g = removal, removal.flow, g
        self.new: dict[Node, Node] = {}

    def outputs(self) -> list[Node]:
        for node in self.flow.constants:
            kept = self.removal.kept[node]
            self.new[node] = self.g.select(node, self.flow.axes[node], kept)
        own = self.flow.steps
        parts = {part for node in self.removal.nodes if node in own for part in own[node].view.nodes} - own.keys()
        for node in self.removal.nodes:
            if node in own:
                self.new[node] = own[node].narrow(self.g, self.new, self.removal.kept)
            elif node in self.removal.readings or self.removal.changes(node):
                self.new[node] = self._layer(node)
            elif node not in parts:
                self.new[node] = replay(self.g, (node,), self.new)
        return [self.new[node] for node in self.removal.outputs]

    def _layer(self, node: Node) -> Node:
        layer = self.flow.sources.get(node) or self.flow.readers[node]
        reading = self.removal.readings.get(node)
        x = self.new.get(layer.input, layer.input)
        vectors = Vectors() if reading is None else self._vectors(layer.input, reading)
        return placed(smaller(self.g, layer, x, self.removal.kept.get(node), reading, vectors), node)

    def _vectors(self, node: Node, reading: Reading) -> Vectors:
        """What a layer needs to know of the channels of a value."""
        constant = multiple = proportional = None
        if reading.constant:
            constant = self._constant(node, reading.constant)
        if reading.multiple:
            multiple = self._ratio(node, *zip(*reading.multiple, strict=True))
        if reading.proportional:
            own, roots = zip(*reading.proportional, strict=True)
            proportional = self.g(aten.div.Tensor, self._constant(node, own), self._constants_of(node, roots))
        return Vectors(constant, multiple, proportional)

    def _constants_of(self, node: Node, channels: Sequence[int]) -> Node:
        """The constants of channels in any order."""
        distinct = sorted(set(channels))
        return self.g.pick(self._constant(node, distinct), 0, [distinct.index(channel) for channel in channels])

    def _ratio(self, node: Node, channels: Sequence[int], roots: Sequence[int]) -> Node:
        """The factors between some channels of a value and others as a vector."""
        flow, g = self.flow, self.g
        if node in flow.sources:
            layer = flow.sources[node]
            return g.row_ratio(layer.weight, rows(layer), channels, roots)
        if node in flow.constants:
            return g(aten.div.Tensor, self._constants_of(node, channels), self._constants_of(node, roots))
        made = flow.steps[node]
        # the terms of a sum are all multiples by the same factor
        count = 1 if isinstance(made, Added) else len(made.operands)
        given = []
        for operand, origin in list(zip(made.operands, made.origins(), strict=True))[:count]:
            pairs = zip(origin[list(channels)].tolist(), origin[list(roots)].tolist(), strict=True)
            wanted = sorted({pair for pair in pairs if pair[0] >= 0})
            if wanted:
                given.append(self._ratio(operand, *zip(*wanted, strict=True)))
        return made.ratio(g, given, channels, roots)

    def _constant(self, node: Node, channels: Sequence[int]) -> Node:
        """The constants of some channels of a value as a vector."""
        flow, g = self.flow, self.g
        if node in flow.constants:
            return g.select(g(aten.reshape.default, node, [-1]), 0, channels)
        bias = flow.sources[node].bias if node in flow.sources else None
        if bias is not None:
            return g.select(bias, 0, channels)
        if node in flow.steps:
            made, given = flow.steps[node], []
            for operand, origin in zip(made.operands, made.origins(), strict=True):
                wanted = sorted({channel for channel in origin[list(channels)].tolist() if channel >= 0})
                if wanted:
                    given.append(self._constant(operand, wanted))
            found = made.constant(g, given, channels)
            if found is not None:
                return found
        reference = next(layer.weight for layer in (*flow.sources.values(), *flow.readers.values()))
        return g(aten.new_zeros.default, reference, [len(channels)])
