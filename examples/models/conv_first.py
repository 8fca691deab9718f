"""ConvFirst: a grouped convolution before the expansion, so that the whole block fits one kernel.

Lavin: On the Efficiency of Convolutional Neural Networks, 2024, arXiv:2404.03617.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.parts import ConvNorm


class ConvFirst(nn.Module):
    """Grouped 3x3, expansion, SiLU, projection, each convolution with its norm; the input is added where it fits.

    No activation stands between the grouped convolution and the expansion.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, group_width: int = 8, ratio: int = 4
    ) -> None:
        super().__init__()
        self.spatial = ConvNorm(inputs, inputs, kernel, stride, groups=inputs // group_width)
        self.expand = ConvNorm(inputs, ratio * inputs, act=nn.SiLU())
        self.project = ConvNorm(ratio * inputs, outputs)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(self.spatial(x)))
        return y + x if self.residual else y


class ConvFirstNet(nn.Module):
    """The classifier: images [N, 3, H, W] to [N, classes]. The first block of each later stage halves the size."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int], group_width: int = 8, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(3, widths[0], 4, 4)]
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(ConvFirst(channels, width, stride=stride, group_width=group_width))
                channels = width
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.stages(x), 1).flatten(1))


def conv_first_tiny() -> ConvFirstNet:
    """Blocks at 64 to 512 channels, groups of 8; for measurements."""
    return ConvFirstNet((3, 3, 9, 3), (64, 128, 256, 512))


def small() -> ConvFirstNet:
    """Two stages of one and two blocks, for images of 32x32."""
    return ConvFirstNet((1, 2), (16, 24), classes=10)
