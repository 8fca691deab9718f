"""Tensors of one number, made from the model's inputs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rewrite import compat
from rewrite.ops import is_tensor, value
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Source:
    """Where a fill has its dtype, device and sizes from.

    Attributes:
        like: an input of the graph or a weight.
        sizes: each a number, or an input and the dimension of it that has the size.
    """

    like: Node
    sizes: tuple[int | tuple[Node, int], ...]


def source_of(graph: Graph, node: Node) -> Source | Refusal:
    """What says the shape, dtype and device of a value; a refusal where nothing does."""
    wanted = value(node)
    inputs = [given for given in graph.inputs if is_tensor(given)]
    weights = [given for given in graph.nodes if given.op == "get_attr" and graph.is_constant(given)]
    like = next((given for given in (*inputs, *weights)
                 if (value(given).dtype, value(given).device) == (wanted.dtype, wanted.device)), None)  # fmt: skip
    sizes = [_size(inputs, size) for size in wanted.shape]
    if None in sizes:
        return Refusal("its size is none of the model's inputs", node, "keep the batch a dimension of its own")
    if like is None:
        kind = f"{str(wanted.dtype).removeprefix('torch.')} on '{wanted.device}'"
        return Refusal(f"no input and no weight that it could be made like is of {kind}", node,
                       f"pass an input of {kind}")  # fmt: skip
    return Source(like, tuple(size for size in sizes if size is not None))


def _size(inputs: list[Node], size: int | torch.SymInt) -> int | tuple[Node, int] | None:
    if isinstance(size, int):
        return size
    for given in inputs:
        for dim, found in enumerate(value(given).shape):
            if compat.statically_known_true(found == size):
                return given, dim
    return None


def filled(g: Builder, source: Source, number: float) -> Node:
    """The number in the shape that the source says."""
    sizes = [size if isinstance(size, int) else g(aten.sym_size.int, *size) for size in source.sizes]
    return g(aten.new_full.default, source.like, sizes, number)
