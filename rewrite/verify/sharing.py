"""Which tensors share memory, seen on real tensors, and whether a caller could notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from rewrite.aliases import alias_sources, roots

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from rewrite.graph import Graph
    from rewrite.rule import Match


def shared(outputs: Sequence[Any], others: Mapping[Any, Any]) -> frozenset[tuple[int, Hashable]]:
    """The pairs of an output, by index, and what it shares memory with: a key of ``others``, or an earlier output."""
    owners: dict[int, list[Hashable]] = {}
    for key, value in others.items():
        for address in _addresses(value):
            owners.setdefault(address, []).append(key)
    pairs: set[tuple[int, Hashable]] = set()
    for i, output in enumerate(outputs):
        for address in _addresses(output):
            pairs.update((i, key) for key in owners.get(address, ()) if key != i)
            owners.setdefault(address, []).append(i)
    return frozenset(pairs)


def _addresses(value: Any) -> list[int]:
    if isinstance(value, (tuple, list)):
        return [address for item in value for address in _addresses(item)]
    # an empty tensor has no memory to share, a sparse one has no storage of its own
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.numel() == 0:
        return []
    return [value.untyped_storage().data_ptr()]


def noticeable(graph: Graph, match: Match, pairs: Iterable[tuple[int, Hashable]]) -> str:
    """In words, a pair of an output of a match and a boundary node, or earlier output, that a caller could notice.

    Inside a graph sharing does no harm, for nothing writes there. A caller notices where an output of the graph would
    share memory with an input, a weight or another output. Returns '' where no pair is such.
    """
    for i, other in sorted(pairs, key=str):
        output = match.outputs[i]
        if not _returned(graph, output):
            continue
        if isinstance(other, int):
            if _returned(graph, match.outputs[other]):
                return f"'{output.name}' would share memory with '{match.outputs[other].name}'"
        elif isinstance(other, Node) and any(
            root.op in ("placeholder", "get_attr") or _returned(graph, root) for root in roots(other)
        ):
            return f"'{output.name}' would share memory with '{other.name}'"
    return ""


def _returned(graph: Graph, node: Node) -> bool:
    """Whether an output of the graph may be the memory of a node."""
    returned = {output for output in graph.outputs if isinstance(output, Node)}
    seen = {node}
    stack = [node]
    while stack and not returned & seen:
        top = stack.pop()
        views = [user for user in top.users if user not in seen and top in alias_sources(user)]
        seen.update(views)
        stack.extend(views)
    return bool(returned & seen)
