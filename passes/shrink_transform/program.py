"""What the rule begins at: ``irfft(rfft(x) * rfft(k))``, with slices behind it that keep a part of the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from passes import affine
from passes.shrink_transform.kernel import Spectrum, spectrum_of, without_zeros
from passes.shrink_transform.line import Line
from rewrite.ops import Product, Slice, Transform, value, view_as
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from rewrite.graph import Graph

_MOST_DIMS = 3


@dataclass(frozen=True)
class Program:
    """A convolution by transforms.

    Attributes:
        input: what is convolved, real.
        spectrum: of the kernel.
        scale: what the result is multiplied by besides.
        lines: each of the last dimensions.
        product: of the spectra.
        node: the outputs that are kept.
        nodes: all of it, in graph order.
    """

    input: Node
    spectrum: Spectrum
    scale: float
    lines: tuple[Line, ...]
    product: Node
    node: Node
    nodes: tuple[Node, ...]

    @property
    def dims(self) -> int:
        """Along how many dimensions it is transformed."""
        return len(self.lines)


@dataclass(frozen=True)
class Begun:
    """A transform back of a product with a spectrum.

    Attributes:
        back: from the product.
        forward: the transform of what is convolved.
        other: the factor that it is multiplied by.
        product: of both.
        factors: products with numbers behind it.
        scale: what these multiply by.
    """

    back: Transform
    forward: Transform
    other: Node
    product: Node
    factors: tuple[Node, ...]
    scale: float


def begun(graph: Graph, node: Node) -> Begun | None:
    """What begins at a transform back to real numbers; None where nothing does."""
    back = view_as(node, Transform)
    if back is None or not back.inverse or not back.real:
        return None
    current, factors, scale = back.input, list[Node](), 1.0
    while (product := view_as(current, Product)) is not None:
        left, right = product.left, product.right
        if isinstance(left, Node) and isinstance(right, Node):
            if product.divided:
                return None
            for one, other in ((left, right), (right, left)):
                forward = view_as(one, Transform)
                if forward is not None and not forward.inverse and not graph.is_constant(one):
                    return Begun(back, forward, other, current, tuple(factors), scale)
            return None
        if isinstance(right, Node):
            if product.divided or isinstance(left, Node):
                return None
            left, right = right, left
        assert isinstance(left, Node)
        assert not isinstance(right, Node)
        if right == 0 and product.divided:
            return None
        scale = scale / right if product.divided else scale * right
        factors.append(current)
        current = left
    return None


def program_of(graph: Graph, start: Begun) -> Program | Refusal:
    """The convolution that begins at a transform, or why it is none that is known."""
    back, forward = start.back, start.forward
    refusal = _transform_refusal(back, forward)
    if refusal is not None:
        return refusal
    if not graph.is_constant(start.other):
        return affine.varying(graph, start.other, "the spectrum that it is multiplied by")
    dims = len(back.dims)
    spectrum = spectrum_of(graph, start.other, dims)
    if isinstance(spectrum, Refusal):
        return spectrum
    refusal = _kernel_refusal(spectrum, forward)
    if refusal is not None:
        return refusal
    x, zeros = without_zeros(forward.input, dims)
    node, kept, slices = _kept(back)
    sizes, taps = tuple[Any, ...](value(x).shape[-dims:]), value(spectrum.kernel).shape[-dims:]
    if not all(isinstance(size, int) for size in sizes):
        return Refusal("the size of its input is not fixed", x,
                       "give its input one size, with the batch alone dynamic")  # fmt: skip
    if 0 in (*sizes, *taps):
        return Refusal("its input or its kernel is empty", back.node)
    each = zip(sizes, taps, back.sizes, kept, strict=True)
    lines = tuple(Line(size, count, period, *part) for size, count, period, part in each)
    refusal = _line_refusal(back.node, lines)
    if refusal is not None:
        return refusal
    inner = (*zeros, forward.node, *spectrum.nodes, start.product, *start.factors, back.node, *slices)
    scale = start.scale * _scale(forward) * _scale(spectrum.transform) * _scale(back)
    return Program(x, spectrum, scale, lines, start.product, node, tuple(sorted(set(inner))))


def _transform_refusal(back: Transform, forward: Transform) -> Refusal | None:
    """Why two transforms are not there and back over the same real numbers."""
    rank, dims = value(back.node).dim(), len(back.dims)
    if not forward.real or not value(forward.input).is_floating_point():
        return Refusal("the transform of its input is not one of real numbers", forward.node, "transform it by rfft")
    if dims > _MOST_DIMS or back.dims != tuple(range(rank - dims, rank)):
        return Refusal("it is not transformed along the last dimensions, in order", back.node,
                       "move the dimensions of space or time behind the others")  # fmt: skip
    rank = value(forward.input).dim()
    if forward.dims != tuple(range(rank - dims, rank)):
        return Refusal("it is transformed there and back along different dimensions", forward.node)
    if not all(isinstance(size, int) for size in (*forward.sizes, *back.sizes)):
        return Refusal("the number of points is not fixed", back.node,
                       "give its input one size, with the batch alone dynamic")  # fmt: skip
    if forward.sizes != back.sizes:
        there, again = (_points(sizes) for sizes in (forward.sizes, back.sizes))
        return Refusal(f"it is transformed over {there} points, and back over {again}", back.node,
                       f"pass the {there} points to both, n= or s=")  # fmt: skip
    return None


def _kernel_refusal(spectrum: Spectrum, forward: Transform) -> Refusal | None:
    """Why a kernel is not transformed as the input is."""
    transform, dims = spectrum.transform, len(forward.dims)
    rank, node = value(transform.input).dim(), transform.node
    if transform.dims != tuple(range(rank - dims, rank)):
        return Refusal("its kernel is transformed along other dimensions than its input", node)
    if transform.sizes != forward.sizes:
        there, other = (_points(sizes) for sizes in (forward.sizes, transform.sizes))
        return Refusal(f"it is transformed over {there} points, and its kernel over {other}", node)
    if value(spectrum.kernel).dtype != value(forward.input).dtype:
        return Refusal(f"its kernel is {value(spectrum.kernel).dtype}, and its input {value(forward.input).dtype}",
                       node, "keep both in one dtype")  # fmt: skip
    return None


def _kept(back: Transform) -> tuple[Node, list[tuple[int, int]], list[Node]]:
    """The outputs that slices keep of those of a transform, their bounds along each of its dimensions, the slices."""
    node, kept, slices = back.node, [(0, int(size)) for size in back.sizes], list[Node]()
    while len(node.users) == 1:
        part = view_as(next(iter(node.users)), Slice)
        if part is None or part.dim not in back.dims or part.step != 1:
            break
        i = back.dims.index(part.dim)
        low, high = kept[i]
        start, end, _ = slice(_bound(part.start), _bound(part.end)).indices(high - low)
        if not all(isinstance(bound, (int, type(None))) for bound in (part.start, part.end)) or start >= end:
            break
        kept[i] = low + start, low + end
        node = part.node
        slices.append(node)
    return node, kept, slices


def _bound(given: Any) -> int | None:
    return given if isinstance(given, int) else None


def _line_refusal(node: Node, lines: tuple[Line, ...]) -> Refusal | None:
    """Why outputs that are kept are not those of a linear convolution."""
    for line in lines:
        if line.wraps:
            return Refusal(
                f"it is a circular convolution: {line.period} points wrap around into outputs that are kept, for its "
                f"input has {line.size} elements and its kernel {line.kernel} taps", node)  # fmt: skip
        if line.first >= line.last:
            return Refusal("it keeps zeros alone, from behind the end of the convolution", node)
    return None


def _points(sizes: tuple[Any, ...]) -> str:
    return " x ".join(map(str, sizes))


def _scale(transform: Transform) -> float:
    """What a transform multiplies by, with the usual division by the number of points on the way back."""
    points = math.prod(transform.sizes)
    divisor = {"backward": 1.0, "ortho": math.sqrt(points), "forward": float(points)}[transform.norm]
    return divisor if transform.inverse else 1 / divisor
