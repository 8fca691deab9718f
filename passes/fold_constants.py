"""Evaluate what depends on weights alone, once.

The frontier of the weight code is folded: each value that is computed from weights and constants alone and read by
something that is not. The model's own weight code runs as it is written, in its own dtypes; the algebra that rules have
introduced runs in float64 and is rounded once. The code itself moves to the graph's weight program, which computes the
folded values again when the weights change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from passes.memory import is_returned
from rewrite.names import clashes
from rewrite.ops import arguments, is_tensor, value
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

MIB = 2**20


@dataclass(frozen=True)
class FoldConstants(Rule):
    """Replace a constant value by a weight that holds it.

    A value may be larger than the weights that it comes from: a filter of ten thousand taps from a small network. One
    that would exceed both limits stays, and what it is computed from is folded in its place. A value that the model
    returns stays too, because each call returns a tensor of its own.

    Attributes:
        growth: how many times the size of its sources a folded value may have.
        floor: MiB that a folded value may have in any case.
    """

    fidelity = Fidelity.ELEMENTWISE
    radius = 1
    starts = "a value that depends on weights alone"
    keeps = ()

    growth: float = 16.0
    floor: float = 16.0

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each of ``dirty`` on the frontier."""
        for node in dirty:
            if node.op != "call_function" or not graph.is_constant(node) or not self._is_read(graph, node):
                continue
            obstacle = self._obstacle(graph, node)
            if obstacle is not None:
                yield Miss(self.name, node, obstacle, _cone(graph, node))
            elif is_tensor(node):
                yield Match(self, _cone(graph, node), (node,))

    def rewrite(self, match: Match, g: Builder) -> Node:
        """A weight named after the largest weight that it comes from and the argument that it is read as."""
        return g.fold(match.anchor, _unused(g.graph, _name(g.graph, match.anchor)))

    def _is_read(self, graph: Graph, node: Node) -> bool:
        """Whether something reads the node that is not folded: the rest of the model, or weight code that stays."""
        return any(
            not graph.is_constant(user)
            or ((not is_tensor(user) or self._obstacle(graph, user) is not None) and self._is_read(graph, user))
            for user in node.users
        )

    def _obstacle(self, graph: Graph, node: Node) -> Refusal | None:
        if not is_tensor(node):
            return None
        if is_returned(node):
            return Refusal("the model returns it, a fresh tensor at each call, and a folded one would be shared", node,
                           "keep it in a buffer, and return a clone of that")  # fmt: skip
        size = _bytes(value(node))
        if size <= self.floor * MIB:
            return None
        given = sum(_bytes(graph.weights[name]) for name in _sources(graph, node))
        if size <= self.growth * given:
            return None
        return Refusal(
            f"would take {size / MIB:.1f} MiB, {size / given:.1f} times the {given / MIB:.1f} MiB of its weights"
            if given
            else f"would take {size / MIB:.1f} MiB and comes from no weight",
            node,
            f"fold-constants{{floor={-(-size // MIB)}}} folds it",
        )


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel()) * tensor.element_size()


def _cone(graph: Graph, node: Node) -> tuple[Node, ...]:
    """The node, and all weight code before it that nothing else reads, in graph order."""
    above: set[Node] = set()
    stack = [node]
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand.op == "call_function" and operand not in above:
                above.add(operand)
                stack.append(operand)
    inside = {node}
    for operand in sorted(above, reverse=True):
        if all(user in inside for user in operand.users):
            inside.add(operand)
    return tuple(sorted(inside))


def _sources(graph: Graph, node: Node) -> list[str]:
    """The names of the model's tensors that a constant comes from, also through values that were folded before."""
    names: dict[str, None] = {}
    seen: set[Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        if top.op != "get_attr":
            stack.extend(top.all_input_nodes)
            continue
        folded = graph.program.results.get(str(top.target))
        if folded is None or folded is top:
            names[str(top.target)] = None
        else:
            stack.append(folded)
    return sorted(names)


def _name(graph: Graph, node: Node) -> str:
    """``folded.``, then the module of the largest source, then ``weight`` or ``bias`` where it is read as one.

    A bias is named after the module of the weight beside it.
    """
    role, weight = _role(graph, node)
    sources = _sources(graph, weight or node) or _sources(graph, node)
    if not sources:
        return f"folded.{node.name}"
    main = max(sources, key=lambda name: (graph.weights[name].is_floating_point(), graph.weights[name].numel()))
    # torch.nn.utils.parametrize hides "conv.weight" behind "conv.parametrizations.weight.original0"
    main = re.sub(r"\bparametrizations\.(\w+)\..*", r"\1", main)
    module, _, last = main.rpartition(".")
    return ".".join(part for part in ("folded", module, role or last) if part)


def _role(graph: Graph, node: Node) -> tuple[str, Node | None]:
    """``weight`` or ``bias`` where a layer reads the node as such, and for a bias the constant weight beside it."""
    for user in node.users:
        if isinstance(user.target, torch._ops.OpOverload):
            named = arguments(user)
            for role in ("weight", "bias"):
                if named.get(role) is node:
                    beside = named.get("weight")
                    constant = isinstance(beside, Node) and graph.is_constant(beside)
                    return role, beside if role == "bias" and constant else None
    return "", None


def _unused(graph: Graph, name: str) -> str:
    """The name, numbered if a weight has it, or has it as the path to its module."""
    candidate, number = name, 0
    while clashes(candidate, graph.weights):
        number += 1
        candidate = f"{name}_{number}"
    return candidate
