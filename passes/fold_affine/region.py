"""What is rewritten when a layer changes: the operators around it whose other readers must not notice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fold_affine.channels import Channels, through
from rewrite.ops import view
from rewrite.rule import Refusal, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.fx import Node

    from passes.fold_affine.maps import Map
    from rewrite.fragment import Builder
    from rewrite.ops import View


@dataclass(frozen=True)
class Region:
    """Nodes that are replaced together.

    Attributes:
        nodes: in graph order.
        outputs: those that others read; the map, which stands for all that is computed from it, is the last.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]

    def replay(self, g: Builder, given: Mapping[Node, Node], mapped: Map) -> list[Node]:
        """The outputs when some of the nodes have become others; the map has become what it mapped."""
        made = dict(given)
        for node in self.nodes:
            if node not in made and node not in mapped.view.nodes:
                made[node] = g.again(node, made)
        made[mapped.node] = made[mapped.input]
        return [made[node] for node in self.outputs]


def results(reader: Node) -> list[View]:
    """The views of what a reader computes: of itself, or of the items of its tuple. Empty where one has none."""
    found = view(reader)
    if found is not None:
        return [found]
    items = [view(item) for item in reader.users]
    known = [item for item in items if item is not None and item.nodes[0] is reader]
    return known if len(known) == len(items) else []


def region(mapped: Map, source: Node, start: Channels, moves: Sequence[View]) -> Region | Refusal:
    """The region from a layer to the map that is folded into it.

    Other readers of what lies between are let alone where they take channels that the map does not change: an
    attention scales its queries, and keys and values are other channels of the same layer.

    Args:
        mapped: the map.
        source: the layer's node.
        start: the layer's channels in its result.
        moves: the operators between, the lowest first. Behind one that moves no channels all of them are changed.
    """
    channels: list[Channels | None] = [start]
    for move in moves:
        before = channels[-1]
        channels.append(None if before is None else through(before, move))
    changed = [found for found in channels if found is not None][-1]
    walk = _Walk(mapped, changed)
    values = [source, *(move.node for move in moves)]
    for node, found, follower in zip(values, channels, (*moves, mapped.view), strict=True):
        refusal = walk.readers(node, None if found is changed else found, follower)
        if refusal is not None:
            return refusal
    inside = {source, *walk.aside, *mapped.view.nodes, *(node for move in moves for node in move.nodes)}
    if None in channels:
        inside |= _between(source, mapped.node, inside)
    outputs = [node for node in inside if node is not mapped.node and any(user not in inside for user in node.users)]
    return Region(tuple(sorted(inside)), (*sorted(outputs), mapped.node))


class _Walk:
    """Looks at the readers of what lies between a layer and a map, and collects those of other channels."""

    def __init__(self, mapped: Map, changed: Channels):
        self.mapped, self.changed = mapped, changed
        self.aside: list[Node] = []

    def readers(self, node: Node, channels: Channels | None, follower: View) -> Refusal | None:
        """Why something else than ``follower`` reads the changed channels of a node; None where nothing does."""
        for reader in node.users:
            if reader is follower.node:
                continue
            found = results(reader)
            others = [other for other in found if other.node is not follower.node]
            if not found or not all(channels is not None and self._aside(channels, other) for other in others):
                return read_elsewhere(node, reader, self.mapped.node)
        return None

    def _aside(self, channels: Channels, move: View) -> bool:
        """Whether a move, with all that reads it, takes none of the changed channels; it is collected then."""
        found = through(channels, move)
        if found is None:
            return False
        self.aside.extend(move.nodes)
        if found.apart(self.changed):
            return True
        further = [(reader, results(reader)) for reader in move.node.users]
        return bool(further) and all(
            others and all(self._aside(found, other) for other in others) for _, others in further
        )


def _between(first: Node, last: Node, inside: set[Node]) -> set[Node]:
    """The nodes on the ways from one of the given nodes to another one."""
    span = list(_span(first, last))
    below = set(inside)
    for node in span:
        if any(operand in below for operand in node.all_input_nodes):
            below.add(node)
    above = set(inside)
    for node in reversed(span):
        if any(user in above for user in node.users):
            above.add(node)
    return below & above


def _span(first: Node, last: Node) -> Iterator[Node]:
    node = first
    while node is not last:
        node = node.next
        yield node
