"""LSNet: large-kernel perception predicts small kernels for each place, which then aggregate.

Wang, Chen, Lin, Han, Ding: LSNet: See Large, Focus Small, CVPR 2025, arXiv:2503.23135.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.parts import ConvNorm, Residual


def small_kernel_aggregation(x: Tensor, weight: Tensor) -> Tensor:
    """A depthwise convolution with a kernel of its own at each place, zero padded.

    Channel ``c`` reads kernel ``c mod M``: the M kernels are spread over interleaved channels.

    Args:
        x: [N, C, H, W].
        weight: [N, M, k * k, H, W] with M dividing C.
    """
    n, channels, height, width = x.shape
    kernels, taps = weight.shape[1:3]
    size = round(taps**0.5)
    patches = F.unfold(x, size, padding=size // 2)
    patches = patches.reshape(n, channels // kernels, kernels, taps, height, width)
    return (patches * weight.unsqueeze(1)).sum(3).reshape(n, channels, height, width)


class KernelPrediction(nn.Module):
    """A 7x7 neighbourhood of [N, C, H, W] to kernels [N, C / 8, 9, H, W]."""

    def __init__(self, channels: int, large: int = 7, small: int = 3, groups: int = 8) -> None:
        super().__init__()
        half, self.taps = channels // 2, small * small
        self.reduce = ConvNorm(channels, half, act=nn.ReLU())
        self.spatial = ConvNorm(half, half, large, groups=half)
        self.mix = ConvNorm(half, half, act=nn.ReLU())
        self.kernels = nn.Conv2d(half, self.taps * channels // groups, 1)
        self.norm = nn.GroupNorm(channels // groups, self.taps * channels // groups)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.norm(self.kernels(self.mix(self.spatial(self.reduce(x)))))
        return weight.unflatten(1, (-1, self.taps))


class LargeSmallConv(nn.Module):
    """Kernels predicted from a large neighbourhood, applied to a small one; [N, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.predict = KernelPrediction(channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(small_kernel_aggregation(x, self.predict(x))) + x


class Depthwise(nn.Module):
    """3x3, 1x1 and identity branches, then a gate for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square = ConvNorm(channels, channels, 3, groups=channels)
        self.point = ConvNorm(channels, channels, groups=channels)
        hidden = max(8, (channels // 4 + 4) // 8 * 8)
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.square(x) + self.point(x) + x
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Attention(nn.Module):
    """Attention over all places, with a learned bias for each distance of rows and columns."""

    def __init__(self, channels: int, resolution: int, key: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.keys, self.values = heads, key * heads, channels // heads * heads
        self.scale = key**-0.5
        self.qkv = ConvNorm(channels, 2 * self.keys + self.values)
        self.spatial = ConvNorm(self.keys, self.keys, 3, groups=self.keys)
        self.project = nn.Sequential(nn.ReLU(), ConvNorm(self.values, channels))
        place = torch.cartesian_prod(torch.arange(resolution), torch.arange(resolution))
        rows, columns = (place[:, None] - place[None]).abs().unbind(-1)
        self.register_buffer("index", rows * resolution + columns)
        self.bias = nn.Parameter(torch.zeros(heads, resolution**2))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        q, k, v = self.qkv(x).split((self.keys, self.keys, self.values), dim=1)
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)) for part in (self.spatial(q), k, v))
        scores = (q.transpose(-2, -1) @ k) * self.scale + self.bias[:, self.index]
        y = v @ scores.softmax(-1).transpose(-2, -1)
        return self.project(y.flatten(1, 2).unflatten(2, (height, width)))


class LSNet(nn.Module):
    """The classifier: images [N, 3, H, H] to [N, classes].

    Blocks alternate between :class:`Depthwise` and :class:`LargeSmallConv`, in the last stage :class:`Attention`; each
    is followed by a residual pair of 1x1 convolutions.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int], size: int = 224, classes: int = 1000) -> None:
        super().__init__()
        first = widths[0]
        layers: list[nn.Module] = [
            ConvNorm(3, first // 4, 3, 2, act=nn.ReLU()),
            ConvNorm(first // 4, first // 2, 3, 2, act=nn.ReLU()),
            ConvNorm(first // 2, first, 3, 2),
        ]
        resolution = size // 8
        for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
            if stage > 0:
                before = widths[stage - 1]
                layers += [ConvNorm(before, before, 3, 2, groups=before), ConvNorm(before, channels)]
                resolution = (resolution + 1) // 2
            last = stage == len(depths) - 1
            for i in range(depth):
                if i % 2 == 0:
                    layers.append(Depthwise(channels))
                else:
                    layers.append(Residual(Attention(channels, resolution)) if last else LargeSmallConv(channels))
                layers.append(Residual(nn.Sequential(ConvNorm(channels, 2 * channels, act=nn.ReLU()),
                                                     ConvNorm(2 * channels, channels))))  # fmt: skip
        self.stages = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.stages(x), 1).flatten(1)
        return self.head(self.norm(x))


def lsnet_t() -> LSNet:
    """LSNet-T, 11.4 M parameters."""
    return LSNet((0, 2, 8, 10), (64, 128, 256, 384))


def lsnet_s() -> LSNet:
    """LSNet-S, 16.1 M parameters."""
    return LSNet((1, 2, 8, 10), (96, 192, 320, 448))


def lsnet_b() -> LSNet:
    """LSNet-B, 23.2 M parameters."""
    return LSNet((4, 6, 8, 10), (128, 256, 384, 512))


def small() -> LSNet:
    """Two stages of two blocks, for images of 48x48."""
    return LSNet((2, 2), (16, 32), size=48, classes=10)
