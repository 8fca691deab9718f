"""Which operators are steps over channels, and why others are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from passes import affine
from passes.prune_exact.maps import Added, Depthwise, Multiplied, Norm
from passes.prune_exact.steps import Joined, Part, Passes, Plane, Pointwise, Resized
from rewrite.ops import (
    Activation,
    AveragePool,
    BatchNorm,
    Cast,
    Concatenation,
    Convolution,
    Copy,
    Expand,
    GroupNorm,
    LayerNorm,
    MaxPool,
    Negation,
    Pad,
    Permute,
    Piece,
    Product,
    Reduction,
    Resampling,
    Reshape,
    Roll,
    Slice,
    Softmax,
    Sum,
    View,
    activation,
    value,
    view,
)
from rewrite.provenance import called, function_name
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from passes.prune_exact.steps import Step
    from rewrite.graph import Graph

Read = Callable[["Graph", Any, Node, int], "Step | Refusal"]


def is_depthwise(found: View | None) -> bool:
    """Whether a convolution has one kernel for each channel."""
    if not isinstance(found, Convolution) or found.transposed or not found.batched:
        return False
    return found.groups == found.in_channels == found.out_channels > 1


def step(graph: Graph, node: Node, operand: Node, axis: int) -> Step | Refusal:
    """How ``node`` reads the channels of ``operand``, which lie along ``axis``; or why it needs them as they are."""
    found = activation(node) or view(node)
    read = None if found is None else _READS.get(type(found))
    if isinstance(found, Softmax) and found.dim == axis:
        return together(node)
    if found is None or read is None or operand not in found.operands:
        return unknown(node)
    return read(graph, found, operand, axis)


def operand_of(node: Node, axis: int) -> tuple[Node, int] | None:
    """An operand whose channels may be those of ``node`` along ``axis``, with their dimension; or None.

    Where a reshape has flattened dimensions the channels are the first of them.
    """
    found = activation(node) or view(node)
    match found:
        case Permute():
            return found.input, found.order[axis]
        case Reshape():
            return _below_reshape(found, axis)
        case Reduction(keepdim=False):
            left = [dim for dim in range(value(found.input).dim()) if dim not in found.dims]
            return found.input, left[axis]
        case Sum() | Product():
            wide = [op for op in found.operands if _axis_in(op, node, axis) is not None]
            return (wide[0], axis - value(node).dim() + value(wide[0]).dim()) if wide else None
        case Concatenation():
            return found.inputs[0], axis
    if found is None or type(found) not in _READS:
        return None
    return found.operands[0], axis


def unknown(node: Node) -> Refusal:
    """Why an operator that nothing here describes may need all channels."""
    return Refusal(f"{function_name(node)} is not known to treat channels apart", node)


def together(node: Node) -> Refusal:
    """Why an operator that computes something of all channels needs them."""
    return Refusal(f"{function_name(node)} reads all channels together", node,
                   f"let {called(node)} read a layer of its own")  # fmt: skip


# -- one operand ------------------------------------------------------------------------------------------------------


def _pointwise(graph: Graph, found: Activation, operand: Node, axis: int) -> Step | Refusal:
    passes = Passes.POSITIVE if found.homogeneous else Passes.ONE
    return Pointwise(found, axis, (operand,), (axis,), passes)


def _negation(graph: Graph, found: Negation, operand: Node, axis: int) -> Step | Refusal:
    return Pointwise(found, axis, (operand,), (axis,), Passes.ANY)


def _same(graph: Graph, found: View, operand: Node, axis: int) -> Step | Refusal:
    return Plane(found, axis, (operand,), (axis,))


def _cast(graph: Graph, found: Cast, operand: Node, axis: int) -> Step | Refusal:
    if not found.dtype.is_floating_point:
        return unknown(found.node)
    # weight algebra is not rounded there, and a factor and a rounding do not commute
    return Plane(found, axis, (operand,), (axis,), Passes.ONE, 0.0)


def _permute(graph: Graph, found: Permute, operand: Node, axis: int) -> Step | Refusal:
    return Plane(found, found.order.index(axis), (operand,), (axis,))


def _roll(graph: Graph, found: Roll, operand: Node, axis: int) -> Step | Refusal:
    return ordered(found.node) if axis in found.dims else Plane(found, axis, (operand,), (axis,))


def _pad(graph: Graph, found: Pad, operand: Node, axis: int) -> Step | Refusal:
    first = value(operand).dim() - len(found.amounts)
    if axis >= first and found.amounts[axis - first] != (0, 0):
        return unknown(found.node)
    if found.mode != "constant":
        return Plane(found, axis, (operand,), (axis,))
    return Plane(found, axis, (operand,), (axis,), Passes.ONE if found.fill else Passes.ANY, found.fill)


def _average(graph: Graph, found: AveragePool, operand: Node, axis: int) -> Step | Refusal:
    if axis >= value(operand).dim() - found.dims:
        return ordered(found.node)
    full = found.divisor is None and not (found.counts_padding and any(found.padding))
    return Plane(found, axis, (operand,), (axis,), Passes.ANY, None if full else 0.0)


def _max(graph: Graph, found: MaxPool, operand: Node, axis: int) -> Step | Refusal:
    if axis >= value(operand).dim() - found.dims:
        return ordered(found.node)
    # a dilated window may lie in the padding as a whole, which is minus infinity
    hits = all(d == 1 or p == 0 for d, p in zip(found.dilation, found.padding, strict=True))
    return Plane(found, axis, (operand,), (axis,), Passes.POSITIVE, None if hits else math.inf)


def _reduce(graph: Graph, found: Reduction, operand: Node, axis: int) -> Step | Refusal:
    if axis in found.dims:
        return together(found.node)
    moved = axis if found.keepdim else axis - sum(dim < axis for dim in found.dims)
    if found.kind == "mean":
        return Plane(found, moved, (operand,), (axis,))
    if found.kind == "sum":
        return Plane(found, moved, (operand,), (axis,), Passes.ANY, 0.0)
    if found.kind in ("max", "min"):
        return Plane(found, moved, (operand,), (axis,), Passes.POSITIVE)
    return Plane(found, moved, (operand,), (axis,), Passes.ONE, math.inf)


def _resampled(graph: Graph, found: Resampling, operand: Node, axis: int) -> Step | Refusal:
    if axis >= value(operand).dim() - found.dims:
        return ordered(found.node)
    return Plane(found, axis, (operand,), (axis,), Passes.POSITIVE if found.mode == "max" else Passes.ANY)


def _expand(graph: Graph, found: Expand, operand: Node, axis: int) -> Step | Refusal:
    before, after = value(operand).shape, value(found.node).shape
    changed = [n for m, n in zip(before, after, strict=False) if str(m) != str(n)]
    if len(before) != len(after) or before[axis] != after[axis] or not all(isinstance(n, int) for n in changed):
        return unknown(found.node)
    return Resized(found, axis, (operand,), (axis,))


def _norm(graph: Graph, found: BatchNorm, operand: Node, axis: int) -> Step | Refusal:
    if found.input is not operand or axis != 1:
        return ordered(found.node)
    return affine.norm_refusal(graph, found) or Norm(found, axis, (operand,), (axis,))


def _depthwise(graph: Graph, found: Convolution, operand: Node, axis: int) -> Step | Refusal:
    # the kernel and the bias too may be what has the channels; in dimension 1 a kernel is refused as no constant
    if axis != 1:
        return ordered(found.node)
    return affine.layer_refusal(graph, found) or Depthwise(found, axis, (operand,), (axis,))


def _layer_norm(graph: Graph, found: LayerNorm, operand: Node, axis: int) -> Step | Refusal:
    if found.input is operand and axis < value(operand).dim() - len(found.shape):
        return Plane(found, axis, (operand,), (axis,), Passes.ONE, math.inf)
    return _normalizes(found.node, "over the channels, so each depends on all of them")


def _group_norm(graph: Graph, found: GroupNorm, operand: Node, axis: int) -> Step | Refusal:
    return _normalizes(found.node, "groups of channels, which would be others")


def _normalizes(node: Node, what: str) -> Refusal:
    return Refusal(f"{function_name(node)} normalizes {what}", node,
                   "use a batch norm, which normalizes every channel by itself")  # fmt: skip


def ordered(node: Node) -> Refusal:
    """Why an operator that runs along the channels needs all of them."""
    return Refusal(f"{function_name(node)} runs along the channels, so their order and number matter", node,
                   "mix the channels with a linear layer instead")  # fmt: skip


# -- parts ------------------------------------------------------------------------------------------------------------


def _slice(graph: Graph, found: Slice, operand: Node, axis: int) -> Step | Refusal:
    if found.dim != axis:
        return Plane(found, axis, (operand,), (axis,))
    bounds = (found.start, found.end)
    if found.step != 1 or not all(bound is None or isinstance(bound, int) for bound in bounds):
        return unknown(found.node)
    start, _, _ = slice(*bounds).indices(int(value(operand).shape[axis]))
    return Part(found, axis, (operand,), (axis,), start)


def _piece(graph: Graph, found: Piece, operand: Node, axis: int) -> Step | Refusal:
    if found.dim != axis:
        return Plane(found, axis, (operand,), (axis,))
    pieces = found.nodes[0].meta["val"]
    return Part(found, axis, (operand,), (axis,), sum(int(piece.shape[axis]) for piece in pieces[: found.index]))


def _join(graph: Graph, found: Concatenation, operand: Node, axis: int) -> Step | Refusal:
    ranks = {value(part).dim() for part in found.inputs}
    if found.dim != axis or len(ranks) > 1:
        return unknown(found.node)
    sizes: list[Any] = [value(part).shape[axis] for part in found.inputs]
    if not all(isinstance(size, int) for size in sizes):
        return unknown(found.node)
    return Joined(found, axis, found.inputs, (axis,) * len(sizes), tuple(sizes))


# -- two operands -----------------------------------------------------------------------------------------------------


def _axis_in(operand: Node, node: Node, axis: int) -> int | None:
    """The dimension of an operand that is dimension ``axis`` of a broadcast result, if it is as large there."""
    own = axis - value(node).dim() + value(operand).dim()
    if own < 0 or str(value(operand).shape[own]) != str(value(node).shape[axis]):
        return None
    return own


def _spread(operand: Node, axis: int, node: Node, sides: Sequence[Any]) -> tuple[int, dict[Node, int], bool] | None:
    """The dimension of the channels in a broadcast result, the operands that have it, and whether others do not."""
    result = axis + value(node).dim() - value(operand).dim()
    axes, others = dict[Node, int](), False
    for side in sides:
        if isinstance(side, Node):
            own = _axis_in(side, node, result)
            if own is None:
                others = True
            else:
                axes[side] = own
    return (result, axes, others) if axes.get(operand) == axis else None


def _sum(graph: Graph, found: Sum, operand: Node, axis: int) -> Step | Refusal:
    spread = _spread(operand, axis, found.node, [term.node for term in found.terms])
    if spread is None:
        return unknown(found.node)
    result, axes, others = spread
    coefficients = [sum(term.coefficient for term in found.terms if term.node is node) for node in axes]
    number = sum(term.coefficient for term in found.terms if term.node is None)
    return Added(found, result, tuple(axes), tuple(axes.values()), tuple(coefficients), number, others)


def _product(graph: Graph, found: Product, operand: Node, axis: int) -> Step | Refusal:
    spread = _spread(operand, axis, found.node, [found.left, found.right])
    if spread is None or not value(found.node).dtype.is_floating_point:
        return unknown(found.node)
    result, axes, _ = spread
    return Multiplied(found, result, tuple(axes), tuple(axes.values()))


# -- reshapes ---------------------------------------------------------------------------------------------------------


def _blocks(shape: Sequence[Any]) -> list[Any]:
    """For each dimension the product of the sizes from it on, None where one of them is a symbol."""
    products: list[Any] = [1]
    for size in reversed(shape):
        products.append(products[-1] * size if isinstance(size, int) and products[-1] is not None else None)
    return products[::-1]


def _reshape(graph: Graph, found: Reshape, operand: Node, axis: int) -> Step | Refusal:
    before, after = tuple(value(operand).shape), tuple(value(found.node).shape)
    inside, outside = _blocks(before), _blocks(after)
    # the dimension of the result that begins before the channels and ends behind them
    for dim in range(len(after)):
        whole, rest = outside[dim], outside[dim + 1]
        if inside[axis] is None or whole is None or inside[axis + 1] == 0 or whole == 0:
            continue
        if whole % inside[axis] == 0 and inside[axis + 1] % rest == 0:
            outer, inner = whole // inside[axis], inside[axis + 1] // rest
            return Resized(found, dim, (operand,), (axis,), Passes.ANY, None, outer, inner)
    return Refusal(f"{function_name(found.node)} takes the channels apart, or puts some of them together", found.node,
                   f"keep the channels a dimension of their own in {called(found.node)}")  # fmt: skip


def _below_reshape(found: Reshape, axis: int) -> tuple[Node, int] | None:
    inside, outside = _blocks(tuple(value(found.input).shape)), _blocks(tuple(value(found.node).shape))
    for dim in range(len(inside) - 1):
        if outside[axis] is not None and inside[dim] == outside[axis] and inside[dim + 1] != inside[dim]:
            return found.input, dim
    return None


_READS: dict[type[View], Read] = {
    Activation: _pointwise, Negation: _negation, Copy: _same, Cast: _cast, Permute: _permute, Roll: _roll, Pad: _pad,
    AveragePool: _average, MaxPool: _max, Reduction: _reduce, Resampling: _resampled, Expand: _expand, BatchNorm: _norm,
    Convolution: _depthwise, GroupNorm: _group_norm, LayerNorm: _layer_norm, Slice: _slice, Piece: _piece,
    Concatenation: _join, Sum: _sum, Product: _product, Reshape: _reshape,
}  # fmt: skip
