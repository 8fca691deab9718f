"""Permutations and reshapes between a layer and what applies to its channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import fx

from rewrite.ops import Permute, Reshape, value, view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder


def below(node: Node, dim: int) -> tuple[Node, tuple[Node, ...], int]:
    """What lies below the permutations and reshapes that end in ``node``.

    Returns the first node that is neither, the layout nodes in graph order, and which dimension of the former becomes
    dimension ``dim`` of ``node``. A reshape that does not keep that dimension whole is not passed.
    """
    layout: list[Node] = []
    while True:
        found = view(node)
        if isinstance(found, Permute):
            source: int | None = found.order[dim]
        elif isinstance(found, Reshape):
            source = kept_dimension(value(found.input).shape, value(node).shape, dim)
        else:
            source = None
        if source is None or not isinstance(found, (Permute, Reshape)):
            return node, tuple(reversed(layout)), dim
        layout.append(node)
        node, dim = found.input, source


def replay(g: Builder, layout: Sequence[Node], old: Node, new: Node) -> Node:
    """The layout nodes, which begin at ``old``, over ``new`` instead."""
    for node in layout:
        old, new = node, g(node.target, *_replaced(node.args, old, new))
    return new


def _replaced(args: Any, old: Node, new: Node) -> Any:
    return fx.map_arg(args, lambda arg: new if arg is old else arg)


def kept_dimension(before: Sequence[Any], after: Sequence[Any], dim: int) -> int | None:
    """The dimension of a reshape's input that is dimension ``dim`` of its result, or None where there is none."""

    def place(shape: Sequence[Any], d: int) -> tuple[int, int] | None:
        trailing = shape[d:]
        return (shape[d], math.prod(trailing)) if all(isinstance(n, int) for n in trailing) else None

    wanted = place(after, dim)
    return next((d for d in range(len(before)) if wanted is not None and place(before, d) == wanted), None)
