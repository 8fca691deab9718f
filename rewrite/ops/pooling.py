"""Average and maximum pooling over windows, and resampling to a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from rewrite.ops.convolution import per_dim
from rewrite.ops.view import View, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class AveragePool(View):
    """The mean of each window, zeros outside the input.

    Attributes:
        input: ``[N, C, *size]``.
        kernel, stride, padding: one for each dimension.
        counts_padding: whether zeros of the padding count in the divisor (only then is it a convolution).
        ceil_mode: whether windows may hang over the end.
        divisor: a fixed divisor, or None for the window's size.
    """

    input: Node
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    counts_padding: bool
    ceil_mode: bool
    divisor: int | None

    @property
    def dims(self) -> int:
        """The number of spatial dimensions."""
        return len(self.kernel)

    @property
    def batched(self) -> bool:
        """Whether the input has a batch dimension."""
        return value(self.input).dim() == self.dims + 2


@reads(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(node: Node, a: dict[str, Any]) -> AveragePool:
    dims = int(str(node.target).split("avg_pool")[1][0])
    kernel = per_dim(a["kernel_size"], dims)
    stride = per_dim(a["stride"], dims) if a["stride"] else kernel
    return AveragePool(node, a["input" if "input" in a else "self"], kernel, stride, per_dim(a["padding"], dims),
                       bool(a["count_include_pad"]), bool(a["ceil_mode"]), a.get("divisor_override"))  # fmt: skip


@dataclass(frozen=True)
class MaxPool(View):
    """The largest element of each window, minus infinity outside the input; NaN wherever the window holds one.

    Attributes:
        input: ``[N, C, *size]`` or ``[C, *size]``.
        kernel, stride, padding, dilation: one for each dimension.
        ceil_mode: whether windows may hang over the end.
    """

    input: Node
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @property
    def dims(self) -> int:
        """The number of spatial dimensions."""
        return len(self.kernel)

    @property
    def batched(self) -> bool:
        """Whether the input has a batch dimension."""
        return value(self.input).dim() == self.dims + 2


def _max_pool(node: Node, a: dict[str, Any], dims: int) -> MaxPool:
    kernel = per_dim(a["kernel_size"], dims)
    stride = per_dim(a["stride"], dims) if a["stride"] else kernel
    padding, dilation = per_dim(a["padding"], dims), per_dim(a["dilation"], dims)
    return MaxPool(node, a["self"], kernel, stride, padding, dilation, bool(a["ceil_mode"]))


@reads(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def _max_pool_alone(node: Node, a: dict[str, Any]) -> MaxPool:
    return _max_pool(node, a, int(str(node.target).split("max_pool")[1][0]))


@reads(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default, item=0)
def _max_pool_of_pair(node: Node, a: dict[str, Any]) -> MaxPool:
    source = node.args[0]
    return _max_pool(node, a, int(str(getattr(source, "target", "")).split("max_pool")[1][0]))


@dataclass(frozen=True)
class Resampling(View):
    """Every channel at the spatial sizes of the result: interpolation, and pooling to a given size.

    Attributes:
        input: ``[N, C, *size]``; pools also take ``[C, *size]``.
        mode: an element of the result is the ``"nearest"`` one, a ``"linear"`` combination of neighbours whose weights
            are not negative and add up to one, or the ``"average"`` or the ``"max"`` of a region.
        dims: the number of spatial dimensions.
        align_corners: of a linear mode, whether the corners of both are the same points.
    """

    input: Node
    mode: Literal["nearest", "linear", "average", "max"]
    dims: int
    align_corners: bool = False


@reads(
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec,
    aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default,
    aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec,
    aten.upsample_linear1d.default, aten.upsample_bilinear2d.default, aten.upsample_trilinear3d.default,
)  # fmt: skip
def _upsample(node: Node, a: dict[str, Any]) -> Resampling:
    x = a["input" if "input" in a else "self"]
    mode: Literal["nearest", "linear"] = "nearest" if "nearest" in str(node.target) else "linear"
    return Resampling(node, x, mode, value(x).dim() - 2, bool(a.get("align_corners")))


@reads(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default, item=0)
def _adaptive_max(node: Node, a: dict[str, Any]) -> Resampling:
    return Resampling(node, a["self"], "max", len(a["output_size"]))
