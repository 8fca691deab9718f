"""UniRepLKNet: large depthwise kernels with dilated branches beside them.

Ding, Zhang, Ge, Zhao, Song, Yue, Shan: UniRepLKNet, CVPR 2024, arXiv:2311.15599.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.parts import ConvNorm, LayerNorm2d, Residual

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""For each large kernel the (kernel, dilation) of the branches beside it."""


class DilatedReparam(nn.Module):
    """A depthwise kernel and its dilated branches, each with a batch norm, over one input; [N, C, H, W] to the same."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.large = ConvNorm(channels, channels, kernel, groups=channels)
        self.dilated = nn.ModuleList(
            ConvNorm(channels, channels, size, groups=channels, dilation=dilation)
            for size, dilation in BRANCHES[kernel]
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.large(x)
        for branch in self.dilated:
            y = y + branch(x)
        return y


class SqueezeExcite(nn.Module):
    """A gate for each channel from global averages."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class ResponseNorm(nn.Module):
    """Global response normalization of [N, H, W, C], from ConvNeXt V2."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        energy = energy / (energy.mean(-1, keepdim=True) + self.eps)
        return (self.gamma * energy + 1) * x + self.beta


class Block(nn.Module):
    """What is added to the residual stream; [N, C, H, W] to the same."""

    def __init__(self, channels: int, kernel: int, ratio: int = 4) -> None:
        super().__init__()
        if kernel in BRANCHES and kernel >= 7:
            self.mix: nn.Module = DilatedReparam(channels, kernel)
        else:
            self.mix = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.gate = SqueezeExcite(channels, channels // 4)
        self.expand = nn.Linear(channels, ratio * channels)
        self.response = ResponseNorm(ratio * channels)
        self.project = nn.Linear(ratio * channels, channels, bias=False)
        self.last_norm = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.norm(self.mix(x))).permute(0, 2, 3, 1)
        y = self.project(self.response(F.gelu(self.expand(y)))).permute(0, 3, 1, 2)
        return self.scale.view(1, -1, 1, 1) * self.last_norm(y)


class UniRepLKNet(nn.Module):
    """The classifier: images [N, 3, H, W] to [N, classes]."""

    def __init__(self, kernels: Sequence[Sequence[int]], widths: Sequence[int], classes: int = 1000) -> None:
        super().__init__()
        half = widths[0] // 2
        layers: list[nn.Module] = [
            nn.Conv2d(3, half, 3, 2, 1), LayerNorm2d(half), nn.GELU(),
            nn.Conv2d(half, widths[0], 3, 2, 1), LayerNorm2d(widths[0]),
        ]  # fmt: skip
        for stage, (sizes, channels) in enumerate(zip(kernels, widths, strict=True)):
            if stage > 0:
                layers += [nn.Conv2d(widths[stage - 1], channels, 3, 2, 1), LayerNorm2d(channels)]
            layers += [Residual(Block(channels, kernel)) for kernel in sizes]
        self.stages = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(x).mean((-2, -1))))


def unireplknet_a() -> UniRepLKNet:
    """UniRepLKNet-A, 4.4 M parameters."""
    return UniRepLKNet(((3, 3), (13,) * 2, (13,) * 6, (13,) * 2), (40, 80, 160, 320))


def unireplknet_t() -> UniRepLKNet:
    """UniRepLKNet-T, 31 M parameters."""
    return UniRepLKNet(((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3), (80, 160, 320, 640))


def unireplknet_s() -> UniRepLKNet:
    """UniRepLKNet-S, 56 M parameters."""
    return UniRepLKNet(((3,) * 3, (13,) * 3, (13, 3, 3) * 9, (13,) * 3), (96, 192, 384, 768))


def small() -> UniRepLKNet:
    """Two stages of one block each, for images of 24x24."""
    return UniRepLKNet(((3,), (7,)), (8, 16), classes=10)
