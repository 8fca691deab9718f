"""Runs of our kernels over images, and where their values lie.

Kernels read and write parts of wider images. So what is split along the channels is where it was, and what is
concatenated is written where it belongs, as far as a kernel of the run writes it and nothing else needs it elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from codegen.native.operators import IMAGES, operator
from codegen.native.pitch import pitch
from codegen.native.sites import fits
from rewrite.ops import Concatenation, Piece, Slice, is_tensor, value, view

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch.fx import GraphModule

EXCITATION = operator("excitation")
KERNELS: tuple[Any, ...] = (*map(operator, IMAGES), EXCITATION)
"""In the order of ``Step::Kind`` in ``sequence.h``."""


@dataclass(frozen=True)
class Place:
    """Where an image lies: in which one, from which channel on."""

    root: Node
    channel: int = 0


class Run:
    """Nodes one behind the other: kernels, what takes their results apart, and what puts them together.

    Attributes:
        nodes: in graph order.
        copies: the parts of concatenations that have to be copied, each with the channel that it begins at.
    """

    def __init__(self, nodes: Sequence[Node]):
        self.nodes = tuple(nodes)
        self.copies: dict[Node, list[tuple[Node, int]]] = {}
        self._inside = set(nodes)
        self._within: dict[Node, Place] = {}
        for node in nodes:
            self._settle(node)

    def _settle(self, node: Node) -> None:
        """Let kernels write the parts of a concatenation where they belong."""
        channel, parts = 0, _parts(node)
        for part in parts:
            if self.writes(part) and part not in self._within and parts.count(part) == 1 and not self.hands_on(part):
                self._within[part] = Place(node, channel)
            else:
                self.copies.setdefault(node, []).append((part, channel))
            channel += int(value(part).shape[1])

    def writes(self, node: Node) -> bool:
        """Whether the run computes an image that is not a part of one that is there."""
        return node in self._inside and (node.target in KERNELS or bool(_parts(node)))

    def hands_on(self, node: Node) -> bool:
        """Whether others than the run read a value or what is taken out of it."""
        return any(user not in self._inside or (not self.writes(user) and self.hands_on(user)) for user in node.users)

    def place(self, node: Node) -> Place:
        """Where an image lies that the run computes or reads."""
        source, channel = node, 0
        if node in self._within:
            source, channel = self._within[node].root, self._within[node].channel
        elif node in self._inside and not self.writes(node):
            source, channel = taken_out(node)  # type: ignore[misc]
        if source is node:
            return Place(node)
        found = self.place(source)
        return Place(found.root, found.channel + channel)

    @property
    def given(self) -> list[Node]:
        """The images that it reads and does not compute, in the order in which it does."""
        roots = [self.place(read).root for node in self.nodes for read in self.reads(node)]
        return [root for root in dict.fromkeys(roots) if not self.writes(root)]

    @property
    def results(self) -> list[Node]:
        """The images that it computes for others, in order."""
        found = {self.place(node).root for node in self.nodes if self.writes(node) and self.hands_on(node)}
        return [node for node in self.nodes if node in found]

    def reads(self, node: Node) -> list[Node]:
        """The images that a node of the run reads when it runs: of a concatenation what is copied."""
        if node.target in KERNELS:
            places = (0,) if node.target is EXCITATION else (0, 3)
            return [read for place in places if isinstance(read := node.args[place], Node)]
        return [part for part, _ in self.copies.get(node, ())]

    def lives(self) -> dict[Node, tuple[int, int]]:
        """From when to when each image that it computes is needed, in positions of nodes."""
        found: dict[Node, tuple[int, int]] = {}
        for time, node in enumerate(self.nodes):
            for touched in (*self.reads(node), *((node,) if self.writes(node) else ())):
                root = self.place(touched).root
                if self.writes(root):
                    found[root] = found.get(root, (time, time))[0], time
        return found

    def replace(self, results: dict[Node, Node]) -> None:
        """Let others read what stands for the results, behind which they come, and erase the nodes.

        What is taken out of a result is taken out of that again.
        """
        known, last = dict(results), max(results.values())
        graph = last.graph
        for node in self.nodes:
            if not self.writes(node) and self.hands_on(node):
                with graph.inserting_after(last):
                    known[node] = last = graph.node_copy(node, lambda read: known.get(read, read))
        for node, new in known.items():
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in self._inside)
        for node in reversed(self.nodes):
            graph.erase_node(node)


def runs(module: GraphModule) -> Iterator[Run]:
    """The longest ones with more than one kernel, in order; each is made when those before it may have been replaced.

    Args:
        module: with recorded values, where it calls kernels.
    """
    if not any(node.target in KERNELS for node in module.graph.nodes):
        return
    found: list[list[Node]] = [[]]
    for node in module.graph.nodes:
        if node.op == "get_attr":
            continue
        if _goes_on(node, found[-1]):
            found[-1].append(node)
        else:
            found.append([])
    for nodes in map(_trimmed, found):
        if sum(node.target in KERNELS for node in nodes) > 1:
            yield Run(nodes)


def _goes_on(node: Node, run: Collection[Node]) -> bool:
    """Whether a node is one more of a run."""
    if node.target in KERNELS:
        return True
    parts = _parts(node)
    if parts:
        return any(part in run and taken_out(part) is None for part in parts) and all(map(_is_last, parts))
    if node.users and all(isinstance(view(item), Piece) for item in node.users):  # a split, whose items come
        source: Any = node.args[0]
        return all(taken_out(item) is not None for item in node.users) and _is_last(source)
    found = taken_out(node)
    return found is not None and (_is_last(found[0]))


def _trimmed(nodes: list[Node]) -> list[Node]:
    """Without what only takes apart at the end."""
    while nodes and nodes[-1].target not in KERNELS and not _parts(nodes[-1]):
        nodes = nodes[:-1]
    return nodes


def _parts(node: Node) -> tuple[Node, ...]:
    """What a node concatenates to an image with channels last; nothing where it is something else."""
    found = view(node) if is_tensor(node) else None
    if not isinstance(found, Concatenation) or found.dim != 1 or value(node).dim() != 4 or not fits(value(node)):
        return ()
    like = torch.empty(value(node).shape, device="meta", memory_format=torch.channels_last)
    return found.inputs if value(node).stride() == like.stride() else ()


def taken_out(node: Node) -> tuple[Node, int] | None:
    """The image of which a node takes neighbouring channels, and the first of them."""
    found = view(node) if is_tensor(node) and node.target is not None else None
    if isinstance(found, Piece):
        fits_ = found.dim == 1 and node.target is getitem
        return (found.input, int(found.start)) if fits_ and _is_image(node, found.input) else None
    if isinstance(found, Slice) and found.dim == 1 and found.step == 1 and _is_image(node, found.input):
        channels = range(int(value(found.input).shape[1]))[found.start : found.end]
        return found.input, channels.start
    return None


def _is_image(node: Node, source: Node) -> bool:
    return value(node).dim() == 4 and fits(value(node)) and fits(value(source))


def _is_last(node: Node) -> bool:
    """Whether an image is as kernels read it."""
    return is_tensor(node) and value(node).dim() == 4 and fits(value(node)) and pitch(value(node)) is not None
