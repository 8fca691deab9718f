"""ECA-ResNet: a residual network whose blocks gate their channels by a convolution over neighbouring channels.

Wang, Wu, Zhu, Li, Zuo, Hu: ECA-Net, CVPR 2020, arXiv:1910.03151.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.parts import ConvNorm


def adaptive_kernel(channels: int, gamma: int = 2, b: int = 1) -> int:
    """The odd kernel size that the paper derives from the number of channels."""
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1


class EfficientChannelAttention(nn.Module):
    """A gate for each channel from the averages of its neighbours; [N, C, H, W] to the same."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=(kernel - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the gate, and the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, kernel: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.reduce = ConvNorm(inputs, width, act=nn.ReLU())
        self.spatial = ConvNorm(width, width, 3, stride, act=nn.ReLU())
        self.expand = ConvNorm(width, outputs)
        self.gate = EfficientChannelAttention(kernel)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.expand(self.spatial(self.reduce(x))))
        return F.relu(y + self.shortcut(x))


class EcaResNet(nn.Module):
    """The classifier: images [N, 3, H, W] to [N, classes]; ``kernels`` are those of the gates of each stage."""

    def __init__(self, depths: Sequence[int], kernels: Sequence[int], width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, width, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        channels = width
        for stage, (depth, kernel) in enumerate(zip(depths, kernels, strict=True)):
            for i in range(depth):
                inner = width * 2**stage
                layers.append(Bottleneck(channels, inner, 2 if stage > 0 and i == 0 else 1, kernel))
                channels = 4 * inner
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def eca_resnet50() -> EcaResNet:
    """ECA-ResNet-50: the 25.56 M parameters of ResNet-50 and 80 more."""
    return EcaResNet((3, 4, 6, 3), (3, 5, 5, 7))


def small() -> EcaResNet:
    """Two stages of one block each, for images of 32x32."""
    return EcaResNet((1, 1), (3, 3), width=8, classes=10)
