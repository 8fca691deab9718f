"""Pieces of a tensor that are put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.memory import layout_refusal, sharing_refusal
from rewrite import compat
from rewrite.graph import fake_call
from rewrite.ops import Concatenation, Piece, same_type, value, view_as
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class JoinPieces(Rule):
    """Read a tensor itself where all its pieces are concatenated in order, alone or among others.

    The concatenation has fewer operands, or goes away. Pieces that others read too stay for them.
    """

    fidelity = Fidelity.BITWISE
    radius = 2
    starts = "all pieces of a tensor in order in a concatenation"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each concatenation among ``dirty`` that holds all pieces of a tensor."""
        for node in dirty:
            whole = view_as(node, Concatenation)
            operands = [] if whole is None else _joined(whole)
            if whole is None or len(operands) == len(whole.inputs):
                continue
            if len(operands) == 1 and not same_type(operands[0], node):
                continue
            nodes, kept = _cone(whole)
            refusal = self._refusal(graph, node, operands, whole.dim)
            if refusal is not None:
                yield Miss(self.name, node, refusal, nodes)
            else:
                yield Match(self, nodes, (*kept, node), {"operands": operands, "kept": kept, "dim": whole.dim})

    def _refusal(self, graph: Graph, node: Node, operands: list[Node], dim: int) -> Refusal | None:
        if len(operands) == 1:
            return sharing_refusal(operands[0], node) or layout_refusal(graph, operands[0], node)
        joined = fake_call(graph.fake_mode, aten.cat.default, (operands, dim), {})
        pairs = zip(joined.stride(), value(node).stride(), strict=True)
        if all(compat.statically_known_true(i == j) for i, j in pairs):
            return None
        return Refusal("the shorter concatenation would have other strides", node,
                       "call contiguous() on what is split")  # fmt: skip

    def rewrite(self, match: Match, g: Builder) -> tuple[Node, ...]:
        """The kept pieces, and the shorter concatenation or what it would consist of."""
        inside = set(match.nodes)
        left = [*match.kept, *(operand for operand in match.operands if operand in inside)]  # a piece may come again
        known: dict[Node, Node] = {}
        for node in match.nodes[:-1]:
            if any(node is piece or node in piece.all_input_nodes for piece in left):
                known[node] = g.keep(node)
        operands = [known.get(operand, operand) for operand in match.operands]
        joined = operands[0] if len(operands) == 1 else g(aten.cat.default, operands, match.dim)
        return (*(known[node] for node in match.kept), joined)


def _joined(whole: Concatenation) -> list[Node]:
    """The operands of a concatenation with what was split in the place of its pieces, where they are all there."""
    operands: list[Node] = []
    inputs = list(whole.inputs)
    while inputs:
        count = _run(inputs, whole.dim)
        piece = view_as(inputs[0], Piece)
        operands.append(piece.input if piece is not None and count else inputs[0])
        del inputs[: max(count, 1)]
    return operands


def _run(inputs: Sequence[Node], dim: int) -> int:
    """How many of the first operands are all pieces of one tensor, in order; 0 where they are not."""
    first = view_as(inputs[0], Piece)
    if first is None or first.dim != dim or first.index != 0:
        return 0
    split = first.nodes[0]
    count = len(split.meta["val"])
    pieces = [view_as(node, Piece) for node in inputs[:count]]
    if len(pieces) < count:
        return 0
    alike = all(piece is not None and piece.nodes[0] is split and piece.index == i for i, piece in enumerate(pieces))
    return count if alike else 0


def _cone(whole: Concatenation) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The nodes of a concatenation and of the pieces that it joins, in graph order, and the pieces read elsewhere."""
    inputs = list(whole.inputs)
    nodes: dict[Node, None] = {}
    while inputs:
        count = _run(inputs, whole.dim)
        if count:
            split = inputs[0].all_input_nodes[0]
            nodes.update(dict.fromkeys([split, *sorted(split.users)]))
        del inputs[: max(count, 1)]
    nodes[whole.node] = None
    kept = [node for node in nodes if node is not whole.node and view_as(node, Piece) is not None
            and any(user is not whole.node for user in node.users)]  # fmt: skip
    return tuple(sorted(nodes)), tuple(sorted(kept))
