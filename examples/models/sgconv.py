"""SGConv: global convolutions whose kernels are made of a few pieces, each twice as coarse as the one before.

Li, Cai, Zhang, Chen, Dey: What Makes Convolutional Models Great on Long Sequence Modeling?, ICLR 2023,
arXiv:2210.09298.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalConv(nn.Module):
    """A convolution of [N, C, L] with one kernel as long as the sequence for each channel, computed by FFT.

    The first call ever fixes the norm that kernels are divided by.

    Args:
        channels: C.
        length: the longest sequence; shorter ones cut the kernel, longer ones extend it with zeros.
        points: how many parameters a piece has.
        mode: whether pieces follow one another or overlap from the start.
        interpolation: how a piece is stretched.
        decay: the least and the largest factor between neighbouring pieces, over the channels.
        power: the exponent of a power law over the kernel in place of these factors.
        bidirectional: a second kernel for what comes later, whose first tap is one step ahead.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        *,
        points: int = 64,
        mode: Literal["cat", "sum"] = "cat",
        interpolation: Literal["linear", "nearest"] = "linear",
        decay: tuple[float, float] = (2.0, 2.0),
        power: float | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.interpolation, self.bidirectional = mode, interpolation, bidirectional
        scales = 1 + math.ceil(math.log2(length / points))
        self.full = points * 2 ** (scales - 1)
        kernels = 2 if bidirectional else 1
        self.pieces = nn.ParameterList(torch.randn(kernels, channels, points) for _ in range(scales))
        self.skip = nn.Parameter(torch.randn(channels))
        if power is None:
            self.register_buffer("decay", torch.linspace(*decay, channels).view(1, -1, 1))
            self.power = None
        else:
            self.register_buffer("decay", torch.tensor(1.0))
            self.power = nn.Parameter(torch.full((channels,), power), requires_grad=False)
        self.register_buffer("norm", torch.ones(kernels, channels, 1))
        self.register_buffer("initialized", torch.tensor(False))

    def stretched(self) -> Tensor:
        """All pieces, stretched and put together, [kernels, C, full]."""
        last = len(self.pieces) - 1
        parts = []
        for i, piece in enumerate(self.pieces):
            factor = 2 ** (max(0, i - 1) if self.mode == "cat" else i)
            part = F.interpolate(piece * self.decay ** (last - i), scale_factor=factor, mode=self.interpolation)
            parts.append(part)
        if self.mode == "cat":
            kernel = torch.cat(parts, dim=-1)
        else:
            kernel = torch.stack([F.pad(part, (0, self.full - part.shape[-1])) for part in parts]).sum(0)
        if self.power is not None:
            time = torch.arange(self.full, device=kernel.device)
            kernel = kernel * torch.exp(-self.power.view(1, -1, 1) * torch.log(time + 1))
        return kernel

    def kernel(self, length: int) -> Tensor:
        """The normalized kernel for a sequence, [C, L], or [C, 2 L] where later taps are those behind the present."""
        kernel = self.stretched()
        if not self.initialized:
            self.norm = kernel.norm(dim=-1, keepdim=True).detach()
            self.initialized = torch.tensor(True, device=kernel.device)
        kernel = kernel[..., :length] if length < self.full else F.pad(kernel, (0, length - self.full))
        kernel = kernel / self.norm
        if not self.bidirectional:
            return kernel[0]
        return F.pad(kernel[0], (0, length)) + F.pad(kernel[1].flip(-1), (length, 0))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        # twice the length, so that the circular convolution does not wrap around
        spectrum = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
        return y + x * self.skip[:, None]


class Layer(nn.Module):
    """The global convolution, GELU and a gated linear layer on a residual stream [N, L, C], with a norm behind."""

    def __init__(self, channels: int, conv: GlobalConv) -> None:
        super().__init__()
        self.conv = conv
        self.mix = nn.Linear(channels, 2 * channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv(x.transpose(-1, -2))).transpose(-1, -2)
        return self.norm(x + F.glu(self.mix(y), dim=-1))


class SGConvNet(nn.Module):
    """The classifier of sequences: [N, L, features] to [N, classes]."""

    def __init__(
        self, features: int, channels: int, depth: int, length: int, *, points: int, power: float, classes: int
    ) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, channels)
        self.layers = nn.Sequential(
            *(
                Layer(channels, GlobalConv(channels, length, points=points, power=power, bidirectional=True))
                for _ in range(depth)
            )
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.encoder(x)).mean(1))


def sgconv_image() -> SGConvNet:
    """For the images of the Long Range Arena, sequences of 1024 grey pixels."""
    return SGConvNet(1, 512, 6, 1024, points=32, power=1.0, classes=10)


def small() -> SGConvNet:
    """One layer for sequences of 48 steps, of which the kernel is longer."""
    return SGConvNet(2, 8, 1, 48, points=8, power=0.5, classes=10)
