"""Concrete sizes for the values that a fragment reads: numbers for symbolic batch sizes, small images where they do.

Most rewrites do not care how large an image is, so they are compared on images just large enough to have an interior,
both borders and a remainder of the stride. Which dimensions can shrink is not deduced but tried: fragments whose
operators mention a size fail on the small one and are compared at the recorded sizes instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor

from rewrite.ops import AveragePool, Convolution, LayerNorm, Linear, Reshape, arguments, view
from rewrite.verify.operators import SIZE_FREE, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch.fx import Node

    from rewrite.fragment import Fragment
    from rewrite.graph import Graph


class UndeterminedSizeError(Exception):
    """A size of the boundary has no value that could be drawn."""


@dataclass(frozen=True)
class Batch:
    """Numbers for the symbols of a graph.

    Attributes:
        symbols: the sizes that are batch sizes: the first dimension of some input of the graph.
        size: the number that all of them take.
        others: the numbers of the other symbols, as in the example.
    """

    symbols: frozenset[Any]
    size: int
    others: Mapping[Any, int] = field(default_factory=dict)

    def concrete(self, size: Any) -> int:
        """A size as a number.

        Raises:
            UndeterminedSizeError: the size depends on a symbol that has no number.
        """
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return size  # type: ignore[no-any-return]
        expression = size.node.expr
        unknown = sorted(str(symbol) for symbol in expression.free_symbols - self.symbols - self.others.keys())
        if unknown:
            raise UndeterminedSizeError(
                f"the size {expression} depends on {', '.join(unknown)}, which is not a size of the model's inputs; "
                f"capture the model with fixed sizes"
            )
        result = expression.subs({**self.others, **dict.fromkeys(self.symbols, self.size)})
        return float(result) if isinstance(size, torch.SymFloat) else int(result)  # type: ignore[return-value]

    def known(self, size: Any) -> bool:
        """Whether a size is a batch size, or made of such."""
        return isinstance(size, torch.SymInt) and size.node.expr.free_symbols <= self.symbols


def batch_symbols(graph: Graph) -> frozenset[Any]:
    """The symbols that are the first dimension of an input."""
    firsts = [sizes(node)[0] for node in graph.inputs if sizes(node)]
    expressions = [first.node.expr for first in firsts if isinstance(first, torch.SymInt)]
    return frozenset(expression for expression in expressions if isinstance(expression, sympy.Symbol))


def example_sizes(graph: Graph) -> dict[Any, int]:
    """The symbols among the inputs and their sizes, with their numbers in the example."""
    found: dict[Any, int] = {}
    for node in graph.inputs:
        for size in (node.meta.get("val"), *sizes(node)):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.hint is not None:
                found[size.node.expr] = int(size.node.hint)
    return found


def sizes(node: Node) -> tuple[Any, ...]:
    """The recorded sizes of a tensor, numbers and symbols; none for anything else."""
    recorded = node.meta.get("val")
    return tuple(recorded.shape) if isinstance(recorded, Tensor) else ()


@dataclass(frozen=True)
class Shrinkage:
    """Smaller spatial sizes.

    Attributes:
        channels_last: the spatial dimensions are ``[1:-1]``, otherwise ``[2:]``.
        sizes: for each spatial dimension the recorded sizes and what they become.
    """

    channels_last: bool
    sizes: tuple[tuple[tuple[int, int], ...], ...]

    def apply(self, shape: Sequence[int], static: Sequence[bool]) -> tuple[int, ...]:
        """The shape with its spatial sizes replaced; sizes that come from symbols stay."""
        result = list(shape)
        for i, dim in enumerate(_spatial(len(shape), self.channels_last)):
            if static[dim] and i < len(self.sizes):
                result[dim] = dict(self.sizes[i]).get(shape[dim], shape[dim])
        return tuple(result)


def _spatial(rank: int, channels_last: bool) -> range:
    if rank < 3:
        return range(0)
    return range(1, rank - 1) if channels_last else range(2, rank)


def shrinkages(
    fragments: Sequence[Fragment], data: Sequence[Node], odd: bool, least: bool = False
) -> Iterator[Shrinkage]:
    """The smaller sizes worth trying, best first.

    Args:
        fragments: both sides of a match.
        data: the boundary nodes that are not constants.
        odd: the largest size of each dimension becomes odd, otherwise even; sizes of different dimensions differ.
        least: only room for an interior, not for a remainder of the stride besides.
    """
    if not all(_ignores_sizes(fragment, data) for fragment in fragments):
        return
    extent, stride = _receptive(fragments, data)
    shapes = [[size if isinstance(size, int) else 0 for size in sizes(node)] for node in data]
    last = _reads_last_dimension(fragments, data)
    tried = set()
    for channels_last in (last, not last):
        for rounding in (math.ceil, math.floor):
            table = []
            for axis in range(3):
                recorded = {
                    size
                    for shape in shapes
                    if len(dims := _spatial(len(shape), channels_last)) > axis and (size := shape[dims[axis]])
                }
                goal = extent[axis] + stride[axis] * (1 if least else 2)
                goal += (goal % 2 == 0) == odd
                table.append(_scaled(recorded, goal + 2 * axis, rounding))
            shrinkage = Shrinkage(channels_last, tuple(table))
            if shrinkage not in tried and any(old != new for row in table for old, new in row):
                tried.add(shrinkage)
                yield shrinkage


def _reads_last_dimension(fragments: Sequence[Fragment], data: Sequence[Node]) -> bool:
    """Whether data goes straight into an operator whose channels are the last dimension."""
    sources = {fragment.inputs[node] for fragment in fragments for node in data if node in fragment.inputs}
    readers = {reader for source in sources for reader in source.users}
    return any(isinstance(found := view(reader), (Linear, LayerNorm)) and found.input in sources for reader in readers)


def _scaled(recorded: set[int], goal: int, rounding: Any) -> tuple[tuple[int, int], ...]:
    """The largest size becomes ``goal``, the others in proportion; one stays one, it may be broadcast."""
    largest = max(recorded, default=0)
    if largest <= goal:
        return tuple((size, size) for size in recorded)
    return tuple((size, 1 if size == 1 else max(1, rounding(Fraction(size * goal, largest)))) for size in recorded)


def reach(fragments: Sequence[Fragment], data: Sequence[Node]) -> tuple[int, ...]:
    """For each spatial dimension, how many outputs from an edge the edge can still be felt."""
    extent, stride = _receptive(fragments, data)
    return tuple(max(1, math.ceil(e / (2 * s))) for e, s in zip(extent, stride, strict=True))


def _receptive(fragments: Iterable[Fragment], data: Sequence[Node]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The largest receptive field of an output, and the largest product of strides, for three dimensions."""
    extent, stride = [1, 1, 1], [1, 1, 1]
    for fragment in fragments:
        seen = {fragment.inputs[node]: (_ONES, _ONES) for node in data if node in fragment.inputs}
        for node in fragment.calls():
            sources = [seen[arg] for arg in node.all_input_nodes if arg in seen]
            if sources:
                before = tuple(zip(*(source[0] for source in sources), strict=True))
                jumps = tuple(zip(*(source[1] for source in sources), strict=True))
                windows = _windows(node)
                fields = tuple(max(b) + (w - 1) * max(j) for b, j, (w, _) in zip(before, jumps, windows, strict=True))
                seen[node] = (fields, tuple(max(j) * s for j, (_, s) in zip(jumps, windows, strict=True)))
                extent = [max(e, math.ceil(f)) for e, f in zip(extent, seen[node][0], strict=True)]
                stride = [max(s, math.ceil(j)) for s, j in zip(stride, seen[node][1], strict=True)]
    return tuple(extent), tuple(stride)


_ONES = (Fraction(1), Fraction(1), Fraction(1))


def _windows(node: Node) -> list[tuple[int, Fraction]]:
    """The window and the stride of a node in each of three spatial dimensions."""
    found = view(node)
    windows: list[tuple[int, Fraction]] = []
    if isinstance(found, Convolution):
        for k, d, s in zip(found.kernel, found.dilation, found.stride, strict=True):
            windows.append((d * (k - 1) + 1, Fraction(1, s) if found.transposed else Fraction(s)))
    elif isinstance(found, AveragePool):
        windows = [(k, Fraction(s)) for k, s in zip(found.kernel, found.stride, strict=True)]
    elif "max_pool" in str(node.target):
        windows = _max_pool_windows(node)
    return (windows + [(1, Fraction(1))] * 3)[:3]


def _max_pool_windows(node: Node) -> list[tuple[int, Fraction]]:
    bound = arguments(node)
    kernel = bound.get("kernel_size")
    if kernel is None:
        return []
    stride, dilation = bound.get("stride") or kernel, bound.get("dilation") or [1]
    pairs = []
    for i, k in enumerate(kernel):
        pairs.append((dilation[i % len(dilation)] * (k - 1) + 1, Fraction(stride[i % len(stride)])))
    return pairs


def _ignores_sizes(fragment: Fragment, data: Sequence[Node]) -> bool:
    """Whether every operator that depends on data does the same at every spatial size."""
    dependent = {fragment.inputs[node] for node in data if node in fragment.inputs}
    for node in fragment.calls():
        if not any(arg in dependent for arg in node.all_input_nodes):
            continue
        dependent.add(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        found = view(node)
        if isinstance(found, Reshape):
            if not _keeps_leading(found):
                return False
        elif not isinstance(found, Linear) and name_of(node) not in SIZE_FREE:
            return False
    return True


def _keeps_leading(reshape: Reshape) -> bool:
    """Whether a reshape is sound at other sizes: a -1 may only stand for what follows unchanged leading dimensions.

    Without a -1 a wrong size changes the number of elements, which fails when it is tried.
    """
    shape, before = reshape.shape, reshape.input.meta["val"].shape
    if not any(isinstance(size, int) and size == -1 for size in shape):
        return True
    leading = [size if isinstance(size, int) else size.meta["val"] for size in shape[:-1]]
    return (
        isinstance(shape[-1], int)
        and shape[-1] == -1
        and len(leading) < len(before)
        and all(str(a) == str(b) for a, b in zip(leading, before, strict=False))
    )
