"""ConvNeXt with learnable spacings: 17x17 depthwise kernels of 34 weights in place of 7x7.

Khalfaoui-Hassani, Pellegrini, Masquelier: Dilated Convolution with Learnable Spacings, ICLR 2023, arXiv:2112.03740.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.dcls import DclsConv, Version, draw_positions
from examples.models.parts import LayerNorm2d


class Block(nn.Module):
    """The ConvNeXt block; [N, C, H, W] to the same. ``positions`` are those of the stage."""

    def __init__(self, channels: int, size: int, count: int, version: Version, positions: nn.Parameter) -> None:
        super().__init__()
        self.mix = DclsConv(
            channels, channels, (size, size), count, version=version, groups=channels, positions=positions
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x).permute(0, 2, 3, 1)
        y = self.scale * self.project(F.gelu(self.expand(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class DclsConvNeXt(nn.Module):
    """The classifier: images [N, 3, H, W] to [N, classes]. All blocks of a stage share one set of positions."""

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        size: int = 17,
        count: int = 34,
        version: Version = "v1",
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0])]
        for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
            if stage > 0:
                layers += [LayerNorm2d(widths[stage - 1]), nn.Conv2d(widths[stage - 1], channels, 2, 2)]
            positions = draw_positions((channels, 1, count), (size, size))
            layers += [Block(channels, size, count, version, positions) for _ in range(depth)]
        self.stages = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(x).mean((-2, -1))))


def dcls_convnext_tiny() -> DclsConvNeXt:
    """The 28.6 M parameters of ConvNeXt-T."""
    return DclsConvNeXt((3, 3, 9, 3), (96, 192, 384, 768))


def small() -> DclsConvNeXt:
    """Two stages of two blocks and one, for images of 32x32."""
    return DclsConvNeXt((2, 1), (8, 16), size=7, count=6, classes=10)
