"""A program on data, watched at its sites, and with replacements in the place of some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import evaluate

if TYPE_CHECKING:
    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.rule import Match

Observer = Callable[[Mapping[Node, Any]], None]
"""Called with the values that it asked for, once in each run."""


@dataclass(eq=False)
class Swap:
    """A replacement that is tried.

    Attributes:
        match: what it stands for.
        fragment: what is computed instead.
        wrong: the energy of the difference at the site so far, both sides computed from the same inputs.
        energy: that of the site's output.
    """

    match: Match
    fragment: Fragment
    wrong: float = 0.0
    energy: float = 0.0

    @property
    def error(self) -> float:
        """The error of the site's output, relative to it."""
        return relative(self.wrong, self.energy)


def relative(wrong: float, energy: float) -> float:
    """The root of an energy over another; infinite where something is wrong about nothing, or that is NaN."""
    if wrong == 0.0:
        return 0.0
    found = (wrong / energy) ** 0.5 if energy > 0 else float("inf")
    return found if found == found else float("inf")


class Trial:
    """Runs a graph operator by operator, in the dtypes that it has.

    Args:
        graph: the program; only read.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._last = {operand: node for node in graph.nodes for operand in node.all_input_nodes}
        self._constants: dict[Node, Any] = {}

    def run(
        self,
        flat: Sequence[Any],
        swaps: Sequence[Swap] = (),
        observers: Sequence[tuple[tuple[Node, ...], Observer]] = (),
    ) -> list[Any]:
        """The flat outputs for flat inputs, without gradients.

        Args:
            flat: of one batch.
            swaps: what is computed instead of some sites; what that changes at the sites is added to them.
            observers: nodes, and what is told of their values as soon as the last of them is there.
        """
        graph, last = self._graph, dict(self._last)
        due: dict[Node, list[tuple[tuple[Node, ...], Observer]]] = {}
        swapped = {swap.match.outputs[-1]: swap for swap in swaps}
        for nodes, observer in observers:
            end = max(nodes, key=self._order.__getitem__)
            due.setdefault(end, []).append((nodes, observer))
            self._extend(last, nodes, end)
        for end, swap in swapped.items():
            self._extend(last, (*swap.fragment.inputs, *swap.match.outputs), end)
        dying: dict[Node, list[Node]] = {}
        for node, end in last.items():
            dying.setdefault(end, []).append(node)
        env: dict[Node, Any] = dict(zip(graph.inputs, flat, strict=True))
        with torch.no_grad():
            for node in graph.nodes:
                if node.op == "output":
                    return list(fx.map_arg(tuple(graph.outputs), env.__getitem__))
                if node not in env:
                    env[node] = self._value(node, env)
                for nodes, observer in due.get(node, ()):
                    observer({each: env[each] for each in nodes})
                if node in swapped:
                    _swap(swapped[node], env)
                for dead in dying.get(node, ()):
                    env.pop(dead, None)
        raise AssertionError("a graph has an output")

    def _extend(self, last: dict[Node, Node], nodes: Iterable[Node], end: Node) -> None:
        """Let values live up to a node at least."""
        for node in nodes:
            if node not in last or self._order[last[node]] < self._order[end]:
                last[node] = end

    def _value(self, node: Node, env: Mapping[Node, Any]) -> Any:
        if node.op == "get_attr":
            return self._graph.weights[str(node.target)].detach()
        if node in self._constants:
            return self._constants[node]
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        found = evaluate.call(node, args, kwargs)
        if self._graph.is_constant(node):
            self._constants[node] = found
        return found


def _swap(swap: Swap, env: dict[Node, Any]) -> None:
    """Put what a replacement gives in the place of a site's outputs."""
    found = swap.fragment.evaluate({node: env[node] for node in swap.fragment.inputs})
    for node, value in zip(swap.match.outputs, found, strict=True):
        swap.wrong += energy(value - env[node])
        swap.energy += energy(env[node])
        env[node] = value


def energy(value: Tensor) -> float:
    """The sum of squares, in float64."""
    wide = value.detach().to(torch.complex128 if value.is_complex() else torch.float64)
    return float(wide.abs().square().sum())


def compares(value: Any) -> bool:
    """Whether an output has an error: it is a tensor of real or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


@dataclass
class Drift:
    """How far a program's outputs are from those of another one, over batches.

    Elements that are the same infinity in both are not counted.

    Attributes:
        wrong, energy: of each output that holds real or complex numbers.
    """

    wrong: dict[int, float] = field(default_factory=dict)
    energy: dict[int, float] = field(default_factory=dict)

    def add(self, found: Sequence[Any], wanted: Sequence[Any]) -> None:
        """Compare the outputs of one batch."""
        for i, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
            if compares(theirs):
                same = (mine == theirs) & ~theirs.isfinite()
                self.wrong[i] = self.wrong.get(i, 0.0) + energy((mine - theirs).masked_fill(same, 0))
                self.energy[i] = self.energy.get(i, 0.0) + energy(theirs.masked_fill(same, 0))

    @property
    def error(self) -> float:
        """The largest relative error of an output."""
        return max((relative(self.wrong[i], self.energy[i]) for i in self.wrong), default=0.0)
