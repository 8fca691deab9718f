"""A layer behind another operator: what would make it a branch of the sum above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.obstruction import Obstruction, compute, dtype_name
from rewrite.ops import Cast, Convolution, Slice, arguments, same_shape, value, view_as
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node


def behind(found: Obstruction, root: Node) -> Refusal:
    """Why the layer is no branch of the sum that ends in ``root``.

    Adding up before the culprit needs all branches there in the layer's dtype and shape, which those are not that come
    without such an operator. So a layer behind a conversion is to compute in the sum's dtype, and a sliced convolution
    to give the slice alone.
    """
    remedies = []
    rest = found
    if value(found.layer.node).dtype != value(root).dtype:
        remedies.append(compute(found.layer.node, dtype_name(root)))
        rest = Obstruction(found.layer, tuple(node for node in found.passed if view_as(node, Cast) is None))
    if rest.passed:
        remedies.append(_moved(rest, root))
    return Refusal(found.reason("the sum"), found.culprit, ", and ".join(remedies))


def _moved(found: Obstruction, root: Node) -> str:
    """How a layer in the sum's dtype is added up."""
    if same_shape(found.layer.node, root):
        return found.remedy("add up")
    return _unsliced(found) or f"{found.remedy('add up')}, with all branches in one shape"


def _unsliced(found: Obstruction) -> str:
    """The stride and padding with which a convolution gives what is left of it; '' where there are none such."""
    conv = found.layer
    if not isinstance(conv, Convolution) or conv.transposed or not conv.batched:
        return ""
    given: list[Any] = list(value(conv.node).shape)
    left = [range(size) if isinstance(size, int) else None for size in given]
    for node in found.passed:
        part = view_as(node, Slice)
        whole = left[part.dim] if part is not None and part.dim > 1 and _is_fixed(part) else None
        if part is None or whole is None:
            return ""
        left[part.dim] = whole[part.start : part.end : part.step]
    sizes: list[Any] = list(value(conv.input).shape)
    axes = [_axis(conv, d, sizes[d + 2], left[d + 2]) for d in range(conv.dims)]
    known = [axis for axis in axes if axis is not None]
    if len(known) < len(axes):
        return ""
    return f"build {called(conv.node)} with {_geometry(conv, known)} instead of {called(found.culprit)}"


def _is_fixed(part: Slice) -> bool:
    return all(bound is None or isinstance(bound, int) for bound in (part.start, part.end))


def _axis(conv: Convolution, d: int, size: Any, left: range | None) -> tuple[int, int, int] | None:
    """Stride and padding along one dimension that give the outputs which are left of it; None for no such padding."""
    low, high = conv.padding[d]
    if left is None:  # of a symbolic size, which is not sliced
        return conv.stride[d], low, high
    if not left or not isinstance(size, int):
        return None
    stride = conv.stride[d] * left.step
    low -= conv.stride[d] * left.start
    least = stride * (len(left) - 1) + conv.dilation[d] * (conv.kernel[d] - 1) + 1 - size - low
    high = min(max(high, least), least + stride - 1)
    return (stride, low, high) if low >= 0 and high >= 0 else None


def _geometry(conv: Convolution, axes: Sequence[tuple[int, int, int]]) -> str:
    """What is to be written for a stride and paddings, as far as it is not written already."""
    stride, padding = tuple(step for step, _, _ in axes), tuple((low, high) for _, low, high in axes)
    changes = [f"stride={stride}"] if stride != conv.stride else []
    # a padding by name goes with no stride
    named = bool(changes) and isinstance(arguments(conv.node)["padding"], str)
    if any(low != high for low, high in padding):
        amounts = [amount for pair in reversed(padding) for amount in pair]
        changes.append(f"padding=0 behind F.pad(input, {amounts})")
    elif named or padding != conv.padding:
        changes.append(f"padding={tuple(low for low, _ in padding)}")
    return " and ".join(changes)
