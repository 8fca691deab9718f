"""InceptionNeXt: a large depthwise kernel taken apart into a square, two bands and an identity.

Yu, Zhou, Yan, Wang: InceptionNeXt, CVPR 2024, arXiv:2303.16900.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InceptionDepthwise(nn.Module):
    """Channels in four groups: untouched, k x k, 1 x b, b x 1; [N, C, H, W] to the same."""

    def __init__(self, channels: int, square: int = 3, band: int = 11, ratio: float = 0.125) -> None:
        super().__init__()
        branch = int(channels * ratio)
        self.square = nn.Conv2d(branch, branch, square, padding=square // 2, groups=branch)
        self.wide = nn.Conv2d(branch, branch, (1, band), padding=(0, band // 2), groups=branch)
        self.high = nn.Conv2d(branch, branch, (band, 1), padding=(band // 2, 0), groups=branch)
        self.sizes = (channels - 3 * branch, branch, branch, branch)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, high = torch.split(x, self.sizes, dim=1)
        return torch.cat((same, self.square(square), self.wide(wide), self.high(high)), dim=1)


class Block(nn.Module):
    """The MetaNeXt block with a batch norm and 1x1 convolutions; [N, C, H, W] to the same."""

    def __init__(self, channels: int, ratio: int, band: int, branch_ratio: float) -> None:
        super().__init__()
        self.mix = InceptionDepthwise(channels, band=band, ratio=branch_ratio)
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, ratio * channels, 1)
        self.project = nn.Conv2d(ratio * channels, channels, 1)
        self.scale = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.gelu(self.expand(self.norm(self.mix(x)))))
        return y * self.scale.reshape(1, -1, 1, 1) + x


class InceptionNeXt(nn.Module):
    """The classifier: images [N, 3, H, W] to [N, classes]."""

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        ratios: Sequence[int] = (4, 4, 4, 3),
        band: int = 11,
        branch_ratio: float = 0.125,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), nn.BatchNorm2d(widths[0])]
        for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
            if stage > 0:
                layers += [nn.BatchNorm2d(widths[stage - 1]), nn.Conv2d(widths[stage - 1], channels, 2, 2)]
            layers += [Block(channels, ratios[stage], band, branch_ratio) for _ in range(depth)]
        self.stages = nn.Sequential(*layers)
        hidden = 3 * widths[-1]
        self.hidden = nn.Linear(widths[-1], hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x).mean((2, 3))
        return self.head(self.norm(F.gelu(self.hidden(x))))


def inception_next_atto() -> InceptionNeXt:
    """InceptionNeXt-A, 4.2 M parameters: bands of 9 over a quarter of the channels each."""
    return InceptionNeXt((2, 2, 6, 2), (40, 80, 160, 320), band=9, branch_ratio=0.25)


def inception_next_tiny() -> InceptionNeXt:
    """InceptionNeXt-T, 28 M parameters."""
    return InceptionNeXt((3, 3, 9, 3), (96, 192, 384, 768))


def small() -> InceptionNeXt:
    """Two stages of one block each, for images of 32x32; the channels are no multiple of the branches."""
    return InceptionNeXt((1, 1), (18, 24), ratios=(2, 2), band=5, classes=10)
