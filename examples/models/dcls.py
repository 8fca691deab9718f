"""Dilated convolution with learnable spacings: few weights, whose places in a large kernel are parameters.

Khalfaoui-Hassani, Pellegrini, Masquelier: Dilated Convolution with Learnable Spacings, ICLR 2023, arXiv:2112.03740; the
triangular and Gaussian shapes from Dilated Convolution with Learnable Spacings: beyond bilinear interpolation, 2023,
arXiv:2306.00817.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Version = Literal["v0", "v1", "max", "gauss"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def axes_of(version: Version, dims: int) -> tuple[int, ...]:
    """The spatial axis along which each row of positions moves.

    The published code orders them differently in each version, and checkpoints depend on it.
    """
    if version == "v0":
        return ((0,), (0, 1), (0, 2, 1))[dims - 1]
    return tuple(reversed(range(dims)))


class DclsConv(nn.Module):
    """A convolution in one to three dimensions whose kernel is built from weights at learned positions.

    ``v0`` splits each weight over the 2^n taps around its position, so that what falls outside is lost. The others give
    it a shape (a hat of width 1, a hat of learned width, a Gaussian) that is normalized over the kernel.

    Args:
        inputs, outputs, groups, stride, padding, bias, padding_mode: as in ``torch.nn.Conv2d``.
        size: the size of the kernel in each dimension.
        count: how many weights a kernel has.
        version: the shape of a weight.
        positions: the positions [n, outputs, inputs / groups, count], relative to the centre, shared with other layers.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, ...],
        count: int,
        *,
        version: Version = "v1",
        stride: int = 1,
        padding: tuple[int, ...] | None = None,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        positions: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.size, self.version, self.stride, self.groups = size, version, stride, groups
        self.padding = tuple(side // 2 for side in size) if padding is None else padding
        self.padding_mode = padding_mode
        self.axes = axes_of(version, len(size))
        shape = (outputs, inputs // groups, count)
        self.weight = nn.Parameter(torch.randn(shape) / (shape[1] * count) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.positions = draw_positions(shape, size) if positions is None else positions
        self.spread = nn.Parameter(torch.zeros(len(size), *shape)) if version in ("max", "gauss") else None

    def kernel(self) -> Tensor:
        """The dense kernel [outputs, inputs / groups, *size]."""
        distances = []
        for row, axis in enumerate(self.axes):
            # the offset is that of the row's number, also where the row moves along another axis
            position = self.positions[row] + self.size[row] // 2
            taps = torch.arange(self.size[axis], device=position.device)
            taps = taps.view(*(-1 if i == axis else 1 for i in range(len(self.size))), 1, 1, 1)
            distances.append(self._split(taps, position) if self.version == "v0" else taps - position)
        shape = self._shape(distances)
        kernel = (shape * self.weight).sum(-1)
        return kernel.permute(-2, -1, *range(len(self.size)))

    @staticmethod
    def _split(taps: Tensor, position: Tensor) -> Tensor:
        """The share that each tap has of a weight between two taps."""
        low = position.floor()
        part = position - low
        return torch.where(taps == low, 1 - part, 0.0) + torch.where(taps == low + 1, part, 0.0)

    def _shape(self, distances: list[Tensor]) -> Tensor:
        """How each weight is spread over the kernel, [*size, outputs, inputs / groups, count]."""
        if self.version == "v0":
            shape = distances[0]
            for share in distances[1:]:
                shape = shape * share
            return shape
        stacked = torch.stack(torch.broadcast_tensors(*distances), len(self.size))
        if self.version == "v1":
            shape = (1 - stacked.abs()).relu().prod(len(self.size))
        elif self.version == "max":
            shape = (self.spread.abs() + 1 - stacked.abs()).relu().prod(len(self.size))
        else:
            shape = torch.exp(-0.5 * (stacked / (self.spread.abs() + 0.27)).norm(2, dim=len(self.size)) ** 2)
        return shape / (shape.sum(tuple(range(len(self.size)))) + 1e-7)

    def forward(self, x: Tensor) -> Tensor:
        convolution = _CONVOLUTIONS[len(self.size)]
        if self.padding_mode == "zeros":
            return convolution(x, self.kernel(), self.bias, self.stride, self.padding, 1, self.groups)
        x = F.pad(x, [side for pad in reversed(self.padding) for side in (pad, pad)], mode=self.padding_mode)
        return convolution(x, self.kernel(), self.bias, self.stride, 0, 1, self.groups)


def draw_positions(shape: tuple[int, int, int], size: tuple[int, ...]) -> nn.Parameter:
    """Positions near the centre, [n, *shape]."""
    rows = [torch.randn(shape).mul(0.5).clamp(-(side // 2), side // 2) for side in size]
    return nn.Parameter(torch.stack(rows))
