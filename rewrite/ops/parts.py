"""Operators that take tensors apart and put them together: slices, splits, concatenations, repetitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, is_tensor, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Expand(View):
    """The input seen with another shape, dimensions of size one repeated; nothing is copied."""

    input: Node


@reads(aten.expand.default)
def _expand(node: Node, a: dict[str, Any]) -> Expand:
    return Expand(node, a["self"])


@dataclass(frozen=True)
class Slice(View):
    """``input[start:end:step]`` along one dimension.

    Attributes:
        dim: not negative.
        start, end: as Python counts them: numbers, negative ones from the end, nodes, or None.
    """

    input: Node
    dim: int
    start: Any
    end: Any
    step: int


@reads(aten.slice.Tensor)
def _slice(node: Node, a: dict[str, Any]) -> Slice | None:
    if not isinstance(a["step"], int):
        return None
    return Slice(node, a["self"], a["dim"] % value(a["self"]).dim(), a["start"], a["end"], a["step"])


@dataclass(frozen=True)
class Overwrite(View):
    """A copy of ``input`` of which a slice holds the values of ``source``; fields as of :class:`Slice`."""

    input: Node
    source: Node
    dim: int
    start: Any
    end: Any
    step: int


@reads(aten.slice_scatter.default)
def _slice_scatter(node: Node, a: dict[str, Any]) -> Overwrite | None:
    if not isinstance(a["step"], int):
        return None
    dim = a["dim"] % value(a["self"]).dim()
    return Overwrite(node, a["self"], a["src"], dim, a["start"], a["end"], a["step"])


@dataclass(frozen=True)
class Concatenation(View):
    """The inputs one behind the other along ``dim``, which is not negative."""

    inputs: tuple[Node, ...]
    dim: int

    @property
    def operands(self) -> tuple[Node, ...]:
        """The inputs."""
        return self.inputs


@reads(aten.cat.default, aten.concat.default, aten.concatenate.default)
def _cat(node: Node, a: dict[str, Any]) -> Concatenation | None:
    inputs = tuple(a["tensors"])
    if not all(is_tensor(part) for part in inputs):
        return None
    return Concatenation(node, inputs, a["dim"] % max(value(node).dim(), 1))


@dataclass(frozen=True)
class Piece(View):
    """One of the consecutive pieces of ``input`` along ``dim``: an item of ``split`` or ``chunk``.

    Attributes:
        index: which piece.
        dim: not negative.
    """

    input: Node
    index: int
    dim: int


@reads(aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default,
       aten.tensor_split.sections, item=...)  # fmt: skip
def _piece(node: Node, a: dict[str, Any]) -> Piece:
    index = node.args[1]
    assert isinstance(index, int)
    return Piece(node, a["self"], index, a["dim"] % value(a["self"]).dim())


@dataclass(frozen=True)
class Roll(View):
    """The input moved cyclically by ``shifts`` along ``dims``, which are not negative."""

    input: Node
    shifts: tuple[int, ...]
    dims: tuple[int, ...]


@reads(aten.roll.default)
def _roll(node: Node, a: dict[str, Any]) -> Roll | None:
    rank = value(a["self"]).dim()
    shifts, dims = tuple(a["shifts"]), tuple(d % rank for d in a["dims"])
    # without dims torch rolls the flattened tensor
    return Roll(node, a["self"], shifts, dims) if len(shifts) == len(dims) else None
