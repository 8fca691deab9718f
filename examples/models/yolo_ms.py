"""YOLO-MS: blocks whose branches see more and more, with kernels that grow from stage to stage.

Chen, Yuan, Wang, Li, Wu, Cheng: YOLO-MS, TPAMI 2025, arXiv:2308.05480.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.parts import ConvNorm


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> ConvNorm:
    """A convolution, its norm and SiLU."""
    return ConvNorm(inputs, outputs, kernel, stride, groups=groups, act=nn.SiLU(inplace=True))


class MultiScaleBlock(nn.Module):
    """Slices of the channels, each added to the result of the slice before; [N, inputs, H, W] to [N, outputs, H, W].

    A slice goes through inverted bottlenecks with its kernel, and is left as it is for kernel 1. Where the channels do
    not divide into slices, the last ones are read by nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, kernels: Sequence[int], *, ratio: float = 3.0, depth: int = 3, expand: int = 2
    ) -> None:
        super().__init__()
        inner = int(inputs * ratio)
        self.width = inner // len(kernels)
        wide = expand * self.width
        self.enter = conv(inputs, inner)
        self.branches = nn.ModuleList(
            nn.Identity()
            if kernel == 1
            else nn.Sequential(
                *(
                    nn.Sequential(conv(self.width, wide), conv(wide, wide, kernel, groups=wide), conv(wide, self.width))
                    for _ in range(depth)
                )
            )
            for kernel in kernels
        )
        self.leave = conv(self.width * len(kernels), outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        parts: list[Tensor] = []
        for i, branch in enumerate(self.branches):
            part = x[:, i * self.width : (i + 1) * self.width]
            if parts:
                part = part + parts[-1]
            parts.append(branch(part))
        return self.leave(torch.cat(parts, dim=1))


class PyramidPooling(nn.Module):
    """Three max pools in a row, side by side; [N, C, H, W] to the same."""

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        self.kernel = kernel
        self.enter = conv(channels, channels // 2)
        self.leave = conv(4 * (channels // 2), channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], self.kernel, 1, self.kernel // 2))
        return self.leave(torch.cat(parts, dim=1))


class YoloMS(nn.Module):
    """The backbone: images [N, 3, H, W] to the maps of the last three stages."""

    def __init__(self, width: int, kernels: Sequence[int] = (3, 5, 7, 9), ratio: float = 3.0, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, width // 2, 3, 2), conv(width // 2, width // 2, 3), conv(width // 2, width, 3)
        )
        self.stages = nn.ModuleList()
        for i, kernel in enumerate(kernels):
            layers: list[nn.Module] = [conv(width, width, 3, 2)]
            if i == len(kernels) - 1:
                layers.append(PyramidPooling(width))
            layers.append(MultiScaleBlock(width, 2 * width, (1, kernel, kernel), ratio=ratio, depth=depth))
            self.stages.append(nn.Sequential(*layers))
            width *= 2

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[-3:])


def yolo_ms_xs() -> YoloMS:
    """The backbone of YOLO-MS-XS."""
    return YoloMS(32, depth=1)


def small() -> YoloMS:
    """Two stages whose 10 and 20 channels do not divide by three, for images of 32x32."""
    return YoloMS(10, (3, 5), ratio=1.0, depth=1)
