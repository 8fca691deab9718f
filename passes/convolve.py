"""Convolutions built by rules: the operator for a geometry, and what keeps a convolution from being rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewrite.ops import value
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.ops import Convolution

aten = torch.ops.aten

CONVOLUTIONS = {
    1: (aten.conv1d.default, aten.conv1d.padding),
    2: (aten.conv2d.default, aten.conv2d.padding),
    3: (aten.conv3d.default, aten.conv3d.padding),
}
"""By the number of dimensions: the operator that takes padding in numbers, and the one that takes it by name."""

Padding = tuple[tuple[int, int], ...]
"""``(low, high)`` for each dimension."""


def padding_argument(
    padding: Sequence[tuple[int, int]], kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> list[int] | str | None:
    """How torch's convolutions spell a padding with zeros: numbers, ``"same"``, or None where they cannot."""
    if all(low == high for low, high in padding):
        return [low for low, _ in padding]
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if set(stride) == {1} and tuple(padding) == tuple((total // 2, total - total // 2) for total in totals):
        return "same"
    return None


def convolve(
    g: Builder,
    x: Node,
    weight: Node,
    bias: Node | None,
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int = 1,
) -> Node:
    """A convolution with zeros around ``x``, by an operator of their own where torch's convolutions cannot add them."""
    kernel = [int(size) for size in value(weight).shape[2:]]
    numbers, named = CONVOLUTIONS[len(kernel)]
    argument = padding_argument(padding, kernel, dilation, stride)
    if isinstance(argument, str):
        return g(named, x, weight, bias, list(stride), argument, list(dilation), groups)
    if argument is None:
        x = g(aten.constant_pad_nd.default, x, [amount for pair in reversed(padding) for amount in pair])
        argument = [0] * len(kernel)
    return g(numbers, x, weight, bias, list(stride), argument, list(dilation), groups)


def convolution_refusal(conv: Convolution) -> Refusal | None:
    """Why a convolution, whatever its weights, is not rebuilt: it is transposed, complex, or has no batch dimension."""
    if conv.transposed:
        return Refusal("the convolution is transposed", conv.node)
    if not conv.batched:
        return Refusal("the convolution's input has no batch dimension", conv.node, "add one with unsqueeze(0)")
    return dtype_refusal(conv.node)


def dtype_refusal(node: Node) -> Refusal | None:
    """Why the values of a layer are not floating-point numbers, or None where they are."""
    if value(node).dtype.is_floating_point:
        return None
    return Refusal(f"its values are {value(node).dtype}", node,
                   "compute in a floating dtype, with real and imaginary parts as channels")  # fmt: skip


def sizes_refusal(x: Node, channels_last: bool = False) -> Refusal | None:
    """Why the spatial sizes of ``[N, C, *size]``, or of ``[N, *size, C]``, are not numbers, or None where they are."""
    sizes = value(x).shape[1:-1] if channels_last else value(x).shape[2:]
    if all(isinstance(size, int) for size in sizes):
        return None
    return Refusal("the size of its input is not fixed", x, "give its input one size, with the batch alone dynamic")


def spatial_sizes(node: Node) -> tuple[int, ...]:
    """The fixed sizes of dimensions from the second on."""
    return tuple(int(size) for size in value(node).shape[2:])
