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

    @property
    def start(self) -> Any:
        """Where the piece begins along ``dim``: a number, or a symbolic size."""
        source: Any = self.node.args[0]
        return sum(piece.shape[self.dim] for piece in source.meta["val"][: self.index])


@reads(aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default,
       aten.tensor_split.sections, item=...)  # fmt: skip
def _piece(node: Node, a: dict[str, Any]) -> Piece:
    index = node.args[1]
    assert isinstance(index, int)
    return Piece(node, a["self"], index, a["dim"] % value(a["self"]).dim())


@dataclass(frozen=True)
class Select(View):
    """``input[index]`` along one dimension, which goes: an item of ``unbind`` too.

    Attributes:
        dim: not negative.
        index: not negative where the size of ``dim`` is a number.
    """

    input: Node
    dim: int
    index: int


def _selected(node: Node, x: Node, dim: int, index: Any) -> Select | None:
    if not isinstance(index, int):
        return None
    dim %= value(x).dim()
    size: Any = value(x).shape[dim]
    return Select(node, x, dim, index % size if isinstance(size, int) and size else index)


@reads(aten.select.int)
def _select(node: Node, a: dict[str, Any]) -> Select | None:
    return _selected(node, a["self"], a["dim"], a["index"])


@reads(aten.unbind.int, item=...)
def _unbound(node: Node, a: dict[str, Any]) -> Select | None:
    return _selected(node, a["self"], a["dim"], node.args[1])


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
