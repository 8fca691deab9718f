"""Add-trees: where they end, and their terms added up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewrite.ops import Negation, Sum, Term, same_type, view

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten


def is_inner(node: Node) -> bool:
    """Whether a sum belongs to the add-tree of the operator that reads it."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return reader is not None and isinstance(view(reader), (Sum, Negation)) and same_type(node, reader)


def plus(g: Builder, total: Node, term: Term) -> Node:
    """A total and one more term."""
    if term.node is None:
        return g(aten.add.Tensor, total, term.coefficient)
    if term.coefficient == 1:
        return g(aten.add.Tensor, total, term.node)
    return g(aten.add.Tensor, total, term.node, alpha=term.coefficient)
