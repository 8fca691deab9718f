"""RepLKNet: depthwise kernels up to 31x31, each trained beside a small one.

Ding, Zhang, Han, Ding: Scaling Up Your Kernels to 31x31, CVPR 2022, arXiv:2203.06717.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from examples.models.parts import ConvNorm, Residual


class LargeKernel(nn.Module):
    """Two depthwise branches over one input, a large kernel and a small one; [N, C, H, W] to the same."""

    def __init__(self, channels: int, kernel: int, small: int) -> None:
        super().__init__()
        self.large = ConvNorm(channels, channels, kernel, groups=channels)
        self.small = ConvNorm(channels, channels, small, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)


def large_kernel_block(channels: int, kernel: int, small: int) -> Residual:
    """Spatial mixing between two 1x1 convolutions, behind a norm."""
    return Residual(
        nn.Sequential(
            nn.BatchNorm2d(channels),
            ConvNorm(channels, channels, act=nn.ReLU()),
            LargeKernel(channels, kernel, small),
            nn.ReLU(),
            ConvNorm(channels, channels),
        )
    )


def feed_forward(channels: int, ratio: int = 4) -> Residual:
    """Channel mixing: two 1x1 convolutions with norms of their own, behind another norm."""
    return Residual(
        nn.Sequential(
            nn.BatchNorm2d(channels),
            ConvNorm(channels, ratio * channels, act=nn.GELU()),
            ConvNorm(ratio * channels, channels),
        )
    )


class RepLKNet(nn.Module):
    """The classifier: images [N, 3, H, W] to [N, classes]."""

    def __init__(
        self, kernels: Sequence[int], depths: Sequence[int], widths: Sequence[int], small: int = 5, classes: int = 1000
    ) -> None:
        super().__init__()
        width = widths[0]
        self.stem = nn.Sequential(
            ConvNorm(3, width, 3, 2, act=nn.ReLU()),
            ConvNorm(width, width, 3, groups=width, act=nn.ReLU()),
            ConvNorm(width, width, act=nn.ReLU()),
            ConvNorm(width, width, 3, 2, groups=width, act=nn.ReLU()),
        )
        layers: list[nn.Module] = []
        for stage, (kernel, depth, channels) in enumerate(zip(kernels, depths, widths, strict=True)):
            if stage > 0:
                layers += [
                    ConvNorm(widths[stage - 1], channels, act=nn.ReLU()),
                    ConvNorm(channels, channels, 3, 2, groups=channels, act=nn.ReLU()),
                ]
            for _ in range(depth):
                layers += [large_kernel_block(channels, kernel, small), feed_forward(channels)]
        self.stages = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stages(self.stem(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def replknet_31b() -> RepLKNet:
    """RepLKNet-31B, 79 M parameters."""
    return RepLKNet((31, 29, 27, 13), (2, 2, 18, 2), (128, 256, 512, 1024))


def replknet_31l() -> RepLKNet:
    """RepLKNet-31L, 172 M parameters."""
    return RepLKNet((31, 29, 27, 13), (2, 2, 18, 2), (192, 384, 768, 1536))


def small() -> RepLKNet:
    """Two stages of one block each, for images of 24x24."""
    return RepLKNet((13, 7), (1, 1), (8, 16), classes=10)
