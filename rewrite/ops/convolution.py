"""Convolutions of one to three dimensions, plain and transposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, is_tensor, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Convolution(View):
    """``y[n, o, u] = b[o] + sum_{c, i} w[o, c, i] x[n, c, stride u + dilation i - low]`` with zeros outside ``x``.

    Attributes:
        input: ``[N, C, *size]``, or ``[C, *size]`` where ``batched`` is False.
        weight: ``[O, C / groups, *kernel]``; ``[C, O / groups, *kernel]`` where ``transposed``.
        bias: ``[O]`` or None.
        stride, dilation: one for each dimension.
        padding: ``(low, high)`` for each dimension; they differ only for ``padding='same'`` and even kernels.
        output_padding: of a transposed convolution; zeros otherwise.
    """

    input: Node
    weight: Node
    bias: Node | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]

    @property
    def dims(self) -> int:
        """The number of spatial dimensions."""
        return value(self.weight).dim() - 2

    @property
    def batched(self) -> bool:
        """Whether the input has a batch dimension."""
        return value(self.input).dim() == self.dims + 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's size, one for each dimension."""
        return tuple(int(size) for size in value(self.weight).shape[2:])

    @property
    def in_channels(self) -> int:
        """The number of input channels, over all groups."""
        shape = value(self.weight).shape
        return int(shape[0]) if self.transposed else int(shape[1]) * self.groups

    @property
    def out_channels(self) -> int:
        """The number of output channels, over all groups."""
        shape = value(self.weight).shape
        return int(shape[1]) * self.groups if self.transposed else int(shape[0])


def per_dim(setting: Any, dims: int) -> tuple[int, ...]:
    """A setting that may be one number for all dimensions, as one for each."""
    values = (setting,) if isinstance(setting, int) else tuple(setting)
    return values * dims if len(values) == 1 else values


def _same(weight: Node, dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    totals = [d * (int(k) - 1) for d, k in zip(dilation, value(weight).shape[2:], strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


@reads(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default,
)  # fmt: skip
def _convolution(node: Node, a: dict[str, Any]) -> Convolution | None:
    weight = a["weight"]
    if not (is_tensor(weight) and is_tensor(a["input"])):
        return None
    dims = value(weight).dim() - 2
    transposed = bool(a.get("transposed", "transpose" in str(node.target)))
    dilation = per_dim(a["dilation"], dims)
    padding: tuple[tuple[int, int], ...]
    if isinstance(a["padding"], str):
        padding = _same(weight, dilation) if a["padding"] == "same" else ((0, 0),) * dims
    else:
        padding = tuple((p, p) for p in per_dim(a["padding"], dims))
    return Convolution(
        node, a["input"], weight, a.get("bias"), per_dim(a["stride"], dims), padding, dilation, a["groups"],
        transposed, per_dim(a.get("output_padding", 0), dims),
    )  # fmt: skip
