"""Small networks and data of the approximation tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A large depthwise kernel, then two pointwise layers, beside a shortcut."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.wide = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(self.mix(x))))


class Net(nn.Module):
    """A stem, blocks of large kernels, and a classifier."""

    def __init__(self, *kernels: int, channels: int = 8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.blocks = nn.Sequential(*(Block(channels, kernel) for kernel in kernels))
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def net(*kernels: int, seed: int = 0) -> Net:
    """In evaluation mode, with statistics and scales that are not those of a new norm."""
    torch.manual_seed(seed)
    model = Net(*kernels).eval()
    norm = model.stem[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return model


def smooth(samples: int, seed: int, size: int = 20) -> Tensor:
    """Images ``[N, 3, H, W]`` in which neighbours are alike."""
    noise = torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, 1, 2) * 5


def batches(number: int = 4, samples: int = 4) -> list[Tensor]:
    """Different ones."""
    return [smooth(samples, seed) for seed in range(number)]


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in norm."""
    return float((found - wanted).double().norm() / wanted.double().norm())
