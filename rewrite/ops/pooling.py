"""Average pooling over windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.convolution import _per_dim
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
    kernel = _per_dim(a["kernel_size"], dims)
    stride = _per_dim(a["stride"], dims) if a["stride"] else kernel
    return AveragePool(node, a["input" if "input" in a else "self"], kernel, stride, _per_dim(a["padding"], dims),
                       bool(a["count_include_pad"]), bool(a["ceil_mode"]), a.get("divisor_override"))  # fmt: skip
