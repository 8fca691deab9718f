"""Flows of channels: from the layers that make them, through operators that keep them apart, to those that read them.

A flow is everything that has to lose a channel together. Where two values are added, channel i of one and channel i of
the other go or stay together; where values are concatenated or cut, channels move to other places. So all channels of
all values fall into classes, and a class can go if every reader can do without it and nothing pins it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from passes.affine import channel_axis
from passes.prune_exact.ends import dense, reader_refusal, shared, source_refusal
from passes.prune_exact.reading import operand_of, ordered, step, unknown
from rewrite.ops import is_tensor, value
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.prune_exact.ends import Layer
    from passes.prune_exact.steps import Step
    from rewrite.graph import Graph


@dataclass(eq=False)
class Flow:
    """Values whose channels belong together.

    Attributes:
        graph: the graph.
        axes: the values in graph order, with the dimension of their channels.
        sources: those that a layer makes.
        constants: those that are constants of the graph: a bias or a scale for each channel.
        steps: those that an operator makes of others.
        readers: the layers that read a value.
        classes: for each value the class of each channel.
        pins: classes that cannot go, and why.
        read: classes that anything reads, as far as it is known.
    """

    graph: Graph
    axes: dict[Node, int] = field(default_factory=dict)
    sources: dict[Node, Layer] = field(default_factory=dict)
    constants: set[Node] = field(default_factory=set)
    steps: dict[Node, Step] = field(default_factory=dict)
    readers: dict[Node, Layer] = field(default_factory=dict)
    classes: dict[Node, list[int]] = field(default_factory=dict)
    pins: dict[int, Refusal] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)

    def channels(self, node: Node) -> int:
        """How many channels a value has."""
        return int(value(node).shape[self.axes[node]])


def explore(graph: Graph, node: Node, axis: int) -> Flow | None:
    """The flow that a value belongs to, with its channels along ``axis``; None where their number is not known."""
    if not isinstance(value(node).shape[axis], int):
        return None
    return _Explorer(graph).explore(node, axis)


class _Explorer:
    """Collects the values of a flow, then numbers their channels."""

    def __init__(self, graph: Graph):
        self.flow = Flow(graph)
        self.pinned: list[tuple[Node, Refusal]] = []  # values of which every channel has to stay
        self.read: list[Node] = []
        self.pending: list[tuple[Node, int]] = []

    def explore(self, node: Node, axis: int) -> Flow:
        self.pending.append((node, axis))
        while self.pending:
            found, dim = self.pending.pop()
            known = self.flow.axes.get(found)
            if known is None:
                self.flow.axes[found] = dim
                if self._enter(found, dim):
                    self._follow(found, dim)
            elif known != dim:
                self._demand(found, unknown(found))
        self.flow.axes = {node: self.flow.axes[node] for node in sorted(self.flow.axes)}
        self.flow.sources = {node: self.flow.sources[node] for node in sorted(self.flow.sources)}
        self.flow.readers = {node: self.flow.readers[node] for node in sorted(self.flow.readers)}
        self.flow.steps = {node: self.flow.steps[node] for node in sorted(self.flow.steps)}
        self._classify()
        return self.flow

    def _pin(self, node: Node, refusal: Refusal | None) -> None:
        if refusal is not None:
            self.pinned.append((node, refusal))

    def _demand(self, node: Node, refusal: Refusal) -> None:
        """Pin a value that something reads as it is."""
        self.read.append(node)
        self.pinned.append((node, refusal))

    # -- where a value comes from -------------------------------------------------------------------------------------

    def _enter(self, node: Node, axis: int) -> bool:
        """Find out what makes a value; whether its other readers matter."""
        flow, layer = self.flow, dense(node)
        if flow.graph.is_constant(node):
            flow.constants.add(node)
            self._pin(node, shared(flow.graph, next(iter(node.users)), (node,)))
            return False
        if layer is not None and axis == channel_axis(layer):
            flow.sources[node] = layer
            self._pin(node, source_refusal(flow.graph, layer))
            return True
        if layer is not None:
            self._demand(node, ordered(node))
            return False
        if node not in flow.steps:
            below = operand_of(node, axis)
            made = None if below is None else step(flow.graph, node, *below)
            if made is None or isinstance(made, Refusal) or made.axis != axis:
                refusal = Refusal(f"no layer makes the channels of {called(node)}", node,
                                  "compute them with a convolution or a linear layer")  # fmt: skip
                self._demand(node, refusal)
                return False
            flow.steps[node] = made
        made = flow.steps[node]
        self._pin(node, shared(flow.graph, made.view.nodes[0], made.weights))
        self.pending += zip(made.operands, made.axes, strict=True)
        return True

    # -- who reads it -------------------------------------------------------------------------------------------------

    def _follow(self, node: Node, axis: int) -> None:
        for user in node.users:
            if user.op == "output":
                self._demand(node, Refusal(f"the model returns the channels of {called(node)}", node,
                                           "return what a layer computes from them"))  # fmt: skip
            elif is_tensor(user):
                self._read(node, axis, user)
            else:
                # several results, each a reader by itself
                for result in user.users:
                    self._read(node, axis, result)

    def _read(self, node: Node, axis: int, user: Node) -> None:
        layer = dense(user)
        if layer is not None:
            refusal = reader_refusal(self.flow.graph, layer, node, axis)
            if refusal is None:
                self.flow.readers[user] = layer
            else:
                self._demand(node, refusal)
            return
        made = self.flow.steps.get(user) or step(self.flow.graph, user, node, axis)
        if isinstance(made, Refusal):
            self._demand(node, made)
        elif (node, axis) not in zip(made.operands, made.axes, strict=True):
            self._demand(node, unknown(user))
        else:
            self.flow.steps[user] = made
            self.pending.append((user, made.axis))

    # -- classes of channels ------------------------------------------------------------------------------------------

    def _classify(self) -> None:
        flow, labels = self.flow, _Labels()
        for node in flow.axes:
            made = flow.steps.get(node)
            if made is None:
                flow.classes[node] = labels.fresh(flow.channels(node))
                continue
            own: list[int] = [-1] * flow.channels(node)
            for operand, origin in zip(made.operands, made.origins(), strict=True):
                for i, channel in enumerate(origin.tolist()):
                    if channel >= 0:
                        label = flow.classes[operand][channel]
                        own[i] = label if own[i] < 0 else labels.union(own[i], label)
            flow.classes[node] = own
        flow.classes = {node: [labels.find(label) for label in own] for node, own in flow.classes.items()}
        for node, refusal in self.pinned:
            for label in flow.classes[node]:
                flow.pins.setdefault(label, refusal)
        flow.read = {label for node in (*self.read, *self._inputs()) for label in flow.classes[node]}

    def _inputs(self) -> list[Node]:
        return [layer.input for layer in self.flow.readers.values()]


class _Labels:
    """Disjoint sets of numbers."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def fresh(self, count: int) -> list[int]:
        """So many new sets."""
        start = len(self._parents)
        self._parents += range(start, start + count)
        return list(range(start, start + count))

    def find(self, label: int) -> int:
        """The smallest number of a set."""
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def union(self, a: int, b: int) -> int:
        """Make one set of two."""
        a, b = sorted((self.find(a), self.find(b)))
        self._parents[b] = a
        return a
