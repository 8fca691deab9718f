"""What it costs to read a strided piece of a larger tensor in place of a dense tensor of its own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from passes.memory import reader_of_strides
from rewrite import compat
from rewrite.cost import tensor_bytes
from rewrite.ops import Concatenation, Linear, Reduction, Reshape, is_tensor, value, view

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from rewrite.flops import Sizes
    from rewrite.graph import Graph

aten = torch.ops.aten

_READS_STRIDED = frozenset({
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.matmul.default,
    aten.einsum.default, aten.scaled_dot_product_attention.default, aten.stack.default, aten.prelu.default,
})  # fmt: skip


@dataclass(frozen=True)
class Copies:
    """What is copied where a value becomes a piece, along one dimension, of a tensor that is larger there.

    Attributes:
        bytes: read and written by the copies, for one sample where the batch is symbolic.
        readers: the operators that force a copy, or the graph's output.
    """

    bytes: int
    readers: tuple[Node, ...]

    @classmethod
    def of(cls, graph: Graph, node: Node, dim: int, sizes: Sizes) -> Copies:
        """The copies that the readers of ``node`` force, also through views of it.

        Elementwise operators, reductions, concatenations and products of matrices read a piece in place; a reshape
        does where it remains a view. All others are taken to copy it.
        """
        seen = reader_of_strides(node)
        if seen is not None:
            return cls(2 * tensor_bytes(node, sizes), (seen,))
        walk = _Walk(graph, sizes)
        walk.read(node, walk.piece(value(node), dim))
        return cls(walk.bytes, tuple(walk.readers))


class _Walk:
    """The readers of a piece, and of views of it."""

    def __init__(self, graph: Graph, sizes: Sizes):
        self.graph, self.sizes = graph, sizes
        self.bytes = 0
        self.readers: list[Node] = []

    def piece(self, dense: Tensor, dim: int) -> Tensor:
        """A fake tensor like a dense one that is a part of one of twice the size."""
        whole = self.call(aten.cat.default, [dense, dense], dim)
        return self.call(aten.slice.Tensor, whole, dim, 0, dense.shape[dim])  # type: ignore[no-any-return]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        with self.graph.fake_mode, compat.python_dispatcher(), torch.no_grad():
            return target(*args, **kwargs)

    def read(self, node: Node, piece: Any) -> None:
        """Count what the readers of a node copy that find ``piece`` for its value."""
        for user in node.users:
            found, target = view(user), user.target
            if target is operator.getitem:
                self.read(user, piece[user.args[1]])
            elif not isinstance(target, torch._ops.OpOverload) or not _gives_tensors(user):
                continue
            elif isinstance(found, Reshape):
                self.reshape(user, node, piece, found.shape)
            elif isinstance(found, Linear):
                self.rows(user, node, piece)
            elif target.is_view:
                args, kwargs = fx.map_arg(
                    (user.args, user.kwargs), lambda arg: piece if arg is node else arg.meta["val"]
                )
                self.read(user, self.call(target, *args, **kwargs))
            elif not _reads_in_place(user):
                self.copy(user, node)

    def reshape(self, user: Node, node: Node, piece: Tensor, shape: tuple[Any, ...]) -> None:
        sizes = fx.map_arg(shape, lambda arg: arg.meta["val"])
        viewed = self.viewed(piece, sizes)
        if viewed is not None:
            self.read(user, viewed)
        elif self.viewed(value(node), sizes) is not None:
            self.copy(user, node)

    def rows(self, user: Node, node: Node, piece: Tensor) -> None:
        sizes = (-1, value(node).shape[-1])
        if self.viewed(piece, sizes) is None and self.viewed(value(node), sizes) is not None:
            self.copy(user, node)

    def viewed(self, tensor: Tensor, sizes: Any) -> Tensor | None:
        """The tensor under another shape; None where that takes a copy."""
        try:
            return self.call(aten.view.default, tensor, list(sizes))  # type: ignore[no-any-return]
        except (RuntimeError, ValueError):
            return None

    def copy(self, user: Node, node: Node) -> None:
        self.bytes += 2 * tensor_bytes(node, self.sizes)
        self.readers.append(user)


def _gives_tensors(node: Node) -> bool:
    recorded = node.meta.get("val")
    return is_tensor(node) or isinstance(recorded, (tuple, list))


def _reads_in_place(node: Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    name, pointwise = node.target._opname, torch.Tag.pointwise in node.target.tags
    if name.startswith("new_") or name.endswith("_like"):  # they ask for shape and dtype alone
        return True
    return pointwise or node.target in _READS_STRIDED or isinstance(view(node), (Reduction, Concatenation))
