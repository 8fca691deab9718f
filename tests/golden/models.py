"""Small networks whose pass diffs are kept beside this file. A line that moves here moves in the diffs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size, and its batch norm."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class ConvNet(nn.Module):
    """Plain convolution, batch norm, ReLU, twice, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.head(x.mean((2, 3)))


class RepVGG(nn.Module):
    """The training form of RepVGG's block: 3x3, 1x1 and identity, each with its norm (Ding et al., 2021, figure 2)."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.dense = conv_norm(channels, channels, 3)
        self.point = conv_norm(channels, channels, 1)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.dense(x) + self.point(x) + self.identity(x))


class MobileOne(nn.Module):
    """The training form of MobileOne's block: over-parameterized depthwise, then pointwise (Vasu et al., 2023)."""

    def __init__(self, channels: int = 8, out: int = 16, branches: int = 2) -> None:
        super().__init__()
        self.depth = nn.ModuleList(conv_norm(channels, channels, 3, groups=channels) for _ in range(branches))
        self.depth_scale = conv_norm(channels, channels, 1, groups=channels)
        self.depth_skip = nn.BatchNorm2d(channels)
        self.point = nn.ModuleList(conv_norm(channels, out, 1) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth_skip(x) + self.depth_scale(x)
        for branch in self.depth:
            y = y + branch(x)
        y = torch.relu(y)
        return torch.relu(sum(branch(y) for branch in self.point))


class FastViTMixer(nn.Module):
    """The training form of FastViT's RepMixer (Vasu et al., 2023, equation 4): ``x + scale * (mix(x) - norm(x))``."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mix = conv_norm(channels, channels, 3, groups=channels)
        self.mix_skip = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x) + self.mix_skip(x)
        return x + self.scale * (mixed - self.norm(x))
