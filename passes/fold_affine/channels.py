"""Where channels are in a value that operators computed from another one without mixing them.

A channel number is written in mixed radix: a reshape splits its digits or puts them together, a permutation moves them,
a slice keeps a range of one of them. So 576 channels become three of ``[3 heads, 64]`` after the reshape, permutation
and ``unbind`` of an attention, and it is still known which rows of the layer each of them comes from.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rewrite import compat
from rewrite.ops import AveragePool, Copy, Pad, Permute, Piece, Reduction, Reshape, Roll, Select, Slice, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.ops import View

Move = Permute | Reshape | Slice | Piece | Select | Roll | Copy | Pad | AveragePool | Reduction
"""What may stand between channels and what applies to them."""


@dataclass(frozen=True)
class Part:
    """A digit of the channel number, or, with ``stride`` 0, elements that have nothing to do with channels.

    Attributes:
        size: how many values it has here; of what is no digit it may be symbolic.
        stride: how many channels lie between two neighbours.
        start: the first of its values.
        whole: how many values it had in the beginning.
    """

    size: Any
    stride: int = 0
    start: int = 0
    whole: int = 1

    def split(self, inner: int) -> tuple[Part, Part] | None:
        """The two parts of which the second has ``inner`` values and varies faster; None where there are none such."""
        if self.size % inner:
            return None
        if not self.stride:
            return Part(self.size // inner), Part(inner)
        if self.start % inner or self.whole % inner:
            return None
        outer = Part(self.size // inner, self.stride * inner, self.start // inner, self.whole // inner)
        return outer, Part(inner, self.stride, 0, inner)


@dataclass(frozen=True)
class Channels:
    """Which channels a value holds, and where.

    Attributes:
        count: how many channels there were in the beginning.
        dims: what each dimension of the value runs over, the outermost part first.
        fixed: digits of which one value was chosen.
    """

    count: int
    dims: tuple[tuple[Part, ...], ...]
    fixed: tuple[Part, ...] = ()

    @property
    def digits(self) -> list[Part]:
        """The digits of the channel number, the one that varies slowest first."""
        parts = [part for dim in self.dims for part in dim if part.stride]
        return sorted([*parts, *self.fixed], key=lambda part: -part.stride)

    @property
    def complete(self) -> bool:
        """Whether every channel is there."""
        return all(part.size == part.whole for part in self.digits)

    def has(self, dim: int) -> bool:
        """Whether a dimension of the value runs over channels, perhaps among others."""
        return any(part.stride for part in self.dims[dim])

    def pure(self, dim: int) -> bool:
        """Whether a dimension of the value runs over channels and nothing else."""
        return self.has(dim) and all(part.stride for part in self.dims[dim])

    def numbers(self) -> frozenset[int]:
        """Which of the channels are there."""
        ranges = [range(part.start, part.start + part.size) for part in self.digits]
        strides = [part.stride for part in self.digits]
        return frozenset(sum(map(operator.mul, digits, strides)) for digits in itertools.product(*ranges))

    def apart(self, other: Channels) -> bool:
        """Whether no channel is in both."""
        return self.numbers().isdisjoint(other.numbers())


def along(node: Node, dims: Sequence[int]) -> Channels:
    """Channels that are numbered along the given dimensions of a value, the last one varying fastest."""
    shape: list[Any] = list(value(node).shape)
    parts = [(Part(size),) for size in shape]
    stride = 1
    for dim in sorted(dims, reverse=True):
        size = int(shape[dim])
        parts[dim] = (Part(size, stride, 0, size),)
        stride *= size
    return Channels(stride, tuple(parts))


def through(channels: Channels, move: View | None) -> Channels | None:
    """Where the channels are in the result of an operator; None where it mixes them with each other or with others."""
    if isinstance(move, Copy):
        return channels
    if isinstance(move, Permute):
        return replace(channels, dims=tuple(channels.dims[dim] for dim in move.order))
    if isinstance(move, Reshape):
        return _reshaped(channels, list(value(move.node).shape))
    if isinstance(move, (Slice, Piece, Select)):
        return _sliced(channels, move)
    if isinstance(move, (Roll, Pad, AveragePool, Reduction)):
        return _moved(channels, move)
    return None


def _moved(channels: Channels, move: Roll | Pad | AveragePool | Reduction) -> Channels | None:
    """Through an operator that changes dimensions without channels only."""
    rank = len(channels.dims)
    if isinstance(move, Pad):
        changed = [rank - len(move.amounts) + i for i, pair in enumerate(move.amounts) if any(pair)]
    elif isinstance(move, AveragePool):
        changed = list(range(rank - move.dims, rank))
    else:
        changed = list(move.dims)
    if any(channels.has(dim) for dim in changed):
        return None
    dims = list(channels.dims)
    if isinstance(move, Reduction):
        dims = [part for dim, part in enumerate(dims) if move.keepdim or dim not in changed]
    shape: list[Any] = list(value(move.node).shape)
    dims = [part if any(p.stride for p in part) else (Part(size),) for part, size in zip(dims, shape, strict=True)]
    return replace(channels, dims=tuple(dims))


def _sliced(channels: Channels, move: Slice | Piece | Select) -> Channels | None:
    dims, fixed = list(channels.dims), channels.fixed
    if not channels.has(move.dim):
        if isinstance(move, Select):
            del dims[move.dim]
        else:
            dims[move.dim] = (Part(value(move.node).shape[move.dim]),)
        return replace(channels, dims=tuple(dims))
    bounds = _bounds(move, value(move.input).shape[move.dim])
    kept = None if bounds is None else _range(dims[move.dim], *bounds)
    if kept is None:
        return None
    dims[move.dim] = kept
    if isinstance(move, Select):
        del dims[move.dim]
        fixed = (*fixed, *kept)
    return replace(channels, dims=tuple(dims), fixed=fixed)


def _bounds(move: Slice | Piece | Select, size: Any) -> tuple[int, int] | None:
    """The first element of what is kept of a dimension, and how many there are; None where they are not neighbours."""
    if not isinstance(size, int):
        return None
    if isinstance(move, Select):
        return move.index, 1
    if isinstance(move, Piece):
        return move.start, int(value(move.node).shape[move.dim])
    if move.step != 1 or not all(bound is None or isinstance(bound, int) for bound in (move.start, move.end)):
        return None
    kept = range(size)[move.start : move.end]
    return kept.start, len(kept)


def _range(parts: Sequence[Part], start: int, size: int) -> tuple[Part, ...] | None:
    """A range of what a dimension runs over: of its outermost part, all others whole."""
    outer, inner = parts[0], math.prod(part.size for part in parts[1:])
    if size == outer.size * inner:
        return tuple(parts)
    if size == 0 or not outer.stride or start % inner or size % inner:
        return None
    return replace(outer, size=size // inner, start=outer.start + start // inner), *parts[1:]


def _reshaped(channels: Channels, shape: Sequence[Any]) -> Channels | None:
    stack = [part for dim in channels.dims for part in dim]
    dims: list[tuple[Part, ...]] = []
    for size in reversed(shape):
        if not any(part.stride and part.size != 1 for part in stack):
            dims.append((Part(size),))  # what is left has no channels, whatever becomes of it
            continue
        taken = _take(stack, size)
        if taken is None:
            return None
        dims.append(taken)
    if any(part.size != 1 for part in stack if part.stride):
        return None
    fixed = [part for part in stack if part.stride]
    return replace(channels, dims=tuple(reversed(dims)), fixed=(*channels.fixed, *fixed))


def _take(stack: list[Part], size: Any) -> tuple[Part, ...] | None:
    """Take parts of ``size`` elements in all from the end of a stack; one of them may have to be split."""
    taken: list[Part] = []
    count: Any = 1
    while not compat.statically_known_true(count == size):
        if not stack:
            return None
        part = stack.pop()
        if isinstance(part.size, int) and part.size == 0:
            return None
        if all(isinstance(number, int) for number in (count, size, part.size)):
            missing = size // count
            if missing == 0 or missing % part.size:
                halves = part.split(missing) if missing > 1 else None
                if halves is None:
                    return None
                stack.append(halves[0])
                part = halves[1]
        taken.append(part)
        count = count * part.size
    return tuple(part for part in reversed(taken) if part.stride or part.size != 1)
