"""Weight algebra that picks channels: slices, and tables of positions where the channels are not evenly spaced.

A table is made of ranges in the graph itself, so it needs no constant beside the model's weights, prints as what it is,
and moves to another device with the rest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten


def runs(positions: Sequence[int]) -> list[range]:
    """Positions in any order as ascending, evenly spaced ranges, each as long as it gets."""
    found: list[range] = []
    start = 0
    while start < len(positions):
        end = start + 1
        step = positions[end] - positions[start] if end < len(positions) else 1
        while step > 0 and end < len(positions) and positions[end] - positions[end - 1] == step:
            end += 1
        if end - start < 3 and step != 1:  # two are evenly spaced by chance
            end, step = start + 1, 1
        found.append(range(positions[start], positions[end - 1] + 1, step))
        start = end
    return found


class Picker:
    """A builder that picks channels; tables of the same positions are made once.

    Attributes:
        g: the builder, which a call adds an operator to.
    """

    def __init__(self, g: Builder):
        self.g = g
        self._tables: dict[tuple[torch.device, tuple[int, ...]], Node] = {}

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add an operator."""
        return self.g(target, *args, **kwargs)

    def select(self, tensor: Node, dim: int, positions: Sequence[int]) -> Node:
        """The given ascending positions of a tensor along one dimension; the tensor itself where these are all."""
        if len(positions) == int(value(tensor).shape[dim]):
            return tensor
        parts = runs(positions)
        if len(parts) == 1:
            step = (parts[0].step,) if parts[0].step != 1 else ()
            return self(aten.slice.Tensor, tensor, dim, parts[0].start, parts[0].stop, *step)
        return self(aten.index_select.default, tensor, dim, self.table(tensor, positions))

    def table(self, like: Node, positions: Sequence[int]) -> Node:
        """Positions in any order as a tensor of integers on the device of ``like``."""
        device = value(like).device
        key = device, tuple(positions)
        if key not in self._tables:
            parts = [
                self(aten.arange.start_step, part.start, part.stop, part.step, dtype=torch.int64, device=device)
                for part in runs(positions)
            ]
            self._tables[key] = self.joined(parts)
        return self._tables[key]

    def pick(self, tensor: Node, dim: int, positions: Sequence[int]) -> Node:
        """Positions of a tensor along one dimension, in any order and also several times."""
        if all(a < b for a, b in pairwise(positions)):
            return self.select(tensor, dim, positions)
        return self(aten.index_select.default, tensor, dim, self.table(tensor, positions))

    def joined(self, vectors: Sequence[Node]) -> Node:
        """Vectors one behind the other."""
        return vectors[0] if len(vectors) == 1 else self(aten.cat.default, list(vectors))

    def row_ratio(self, weight: Node, dim: int, rows: Sequence[int], others: Sequence[int]) -> Node:
        """The factors between slices of a weight along one dimension that are multiples of others."""
        over = [d for d in range(value(weight).dim()) if d != dim]
        own, other = self.pick(weight, dim, rows), self.pick(weight, dim, others)
        products = [self(aten.sum.dim_IntList, self(aten.mul.Tensor, part, other), over) for part in (own, other)]
        return self(aten.div.Tensor, *products)

    def along(self, vector: Node, dim: int, rank: int) -> Node:
        """A vector in a shape that multiplies tensors of a rank along one dimension."""
        return self(aten.reshape.default, vector, [-1 if d == dim else 1 for d in range(rank)])

    def added(self, tensor: Node, dim: int, into: Sequence[int], source: Node, by: Node | None) -> Node:
        """A tensor to whose positions ``into`` along one dimension those of ``source`` are added, times a vector."""
        if by is not None:
            source = self(aten.mul.Tensor, source, self.along(by, dim, value(source).dim()))
        return self(aten.index_add.default, tensor, dim, self.table(tensor, into), source)
