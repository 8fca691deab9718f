"""Where the elements of a value lie in the tile that a kernel works on, through views of it.

A kernel computes elements of an image by their coordinates: sample ``n``, channel ``c``, row ``h``, column ``w``. A
value behind it that is permuted or flattened has the same elements under other indices: each of its dimensions runs
over one coordinate, or over several of them, the last one fastest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import sympy

from rewrite.ops import Copy, Permute, Reshape, value, view

if TYPE_CHECKING:
    from torch.fx import Node

COORDINATES = ("n", "c", "h", "w")

Axes = tuple[tuple[str, ...], ...]
"""For each dimension of a value the coordinates that it runs over; none where its size is one."""


def followed(node: Node, axes: Axes, sizes: Mapping[str, int]) -> Axes | None:
    """The axes of a view, or a copy, of a value with such axes; None for what is none, or cuts a coordinate in parts.

    Args:
        node: reads the value first.
        axes: of that value.
        sizes: of the coordinates.
    """
    layout = view(node)
    match layout:
        case Permute(order=order):
            return tuple(axes[dim] for dim in order)
        case Copy():
            return axes
        case Reshape():
            return _reshaped(axes, [int(size) for size in value(node).shape], sizes)
    return None


def _reshaped(axes: Axes, shape: Sequence[int], sizes: Mapping[str, int]) -> Axes | None:
    """The same coordinates in order over other dimensions."""
    left = [name for axis in axes for name in axis if sizes[name] > 1]
    found: list[tuple[str, ...]] = []
    for size in shape:
        taken: list[str] = []
        while left and math.prod(sizes[name] for name in taken) < size:
            taken.append(left.pop(0))
        if math.prod(sizes[name] for name in taken) != size:
            return None
        found.append(tuple(taken))
    return None if left else tuple(found)


def strides_of(axes: Axes, strides: Sequence[int], sizes: Mapping[str, int]) -> dict[str, int]:
    """How far apart in memory neighbours along each coordinate are; 0 for coordinates that a value does not have."""
    found = dict.fromkeys(COORDINATES, 0)
    for axis, stride in zip(axes, strides, strict=True):
        for name in reversed(axis):
            found[name] += stride
            stride *= sizes[name]
    return found


def spread(node: Node, axes: Axes) -> Axes | None:
    """The axes of a tensor that is broadcast to a value with such axes; None where its dimensions do not fit."""
    shape = [int(size) for size in value(node).shape]
    if len(shape) > len(axes):
        return None
    aligned = axes[len(axes) - len(shape) :]
    return tuple(() if size == 1 else axis for size, axis in zip(shape, aligned, strict=True))


def symbol(name: str) -> sympy.Symbol:
    """A coordinate, or a size, in formulas."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def text(formula: sympy.Expr | int) -> str:
    """A formula of indices as Triton writes it, without products by one and sums with zero."""
    expanded = sympy.sympify(formula)
    return str(sympy.printing.pycode(expanded, fully_qualified_modules=False))
