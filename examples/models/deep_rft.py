"""DeepRFT: residual blocks with a branch through the Fourier domain, in a network of three scales.

Mao, Liu, Liu, Li, Shen, Wang: Intriguing Findings of Frequency Selection for Image Deblurring, AAAI 2023,
arXiv:2111.11745; the scales from Cho, Ji, Hong, Jung, Ko: Rethinking Coarse-to-Fine Approach (MIMO-UNet), ICCV 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.doconv import DOConv


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Module:
    """An over-parameterized convolution, with ReLU."""
    layer = DOConv(inputs, outputs, kernel, stride)
    return nn.Sequential(layer, nn.ReLU(inplace=True)) if relu else layer


def enlarge(inputs: int, outputs: int) -> nn.Module:
    """A transposed convolution to twice the size, with ReLU."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.ReLU(inplace=True))


class FourierResidual(nn.Module):
    """``x``, two 3x3 convolutions of it, and two 1x1 convolutions of its spectrum; [N, C, H, W] to the same.

    The second branch sees real and imaginary parts as channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels, 3), conv(channels, channels, 3, relu=False))
        self.spectrum = nn.Sequential(
            conv(2 * channels, 2 * channels, 1), conv(2 * channels, 2 * channels, 1, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        real, imaginary = self.spectrum(torch.cat([spectrum.real, spectrum.imag], dim=1)).chunk(2, dim=1)
        return self.body(x) + x + torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:])


def stage(channels: int, depth: int) -> nn.Module:
    """Residual blocks in a row."""
    return nn.Sequential(*(FourierResidual(channels) for _ in range(depth)))


class ShallowFeatures(nn.Module):
    """Features of a smaller image, beside the image itself; [N, 3, H, W] to [N, channels, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, channels // 4, 3), conv(channels // 4, channels // 2, 1),
            conv(channels // 2, channels // 2, 3), conv(channels // 2, channels - 3, 1),
        )  # fmt: skip
        self.mix = conv(channels, channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([x, self.body(x)], dim=1))


class DeepRFT(nn.Module):
    """Deblurring: an image [N, 3, H, W] to three, at full, half and quarter size; H and W are multiples of four."""

    def __init__(self, width: int = 32, depth: int = 8) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.enter = nn.ModuleList([conv(3, width, 3), conv(width, widths[1], 3, 2), conv(widths[1], widths[2], 3, 2)])
        self.shallow = nn.ModuleList([ShallowFeatures(widths[1]), ShallowFeatures(widths[2])])
        self.attend = nn.ModuleList([conv(channels, channels, 3, relu=False) for channels in widths[1:]])
        self.encoders = nn.ModuleList([stage(channels, depth) for channels in widths])
        self.fuse = nn.ModuleList(
            nn.Sequential(conv(7 * width, channels, 1), conv(channels, channels, 3, relu=False))
            for channels in widths[:2]
        )
        self.decoders = nn.ModuleList([stage(channels, depth) for channels in widths])
        self.enlarge = nn.ModuleList([enlarge(widths[1], width), enlarge(widths[2], widths[1])])
        self.join = nn.ModuleList([conv(2 * channels, channels, 1) for channels in widths[:2]])
        self.leave = nn.ModuleList([conv(channels, 3, 3, relu=False) for channels in widths])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = F.interpolate(x, scale_factor=0.5)
        images = (x, half, F.interpolate(half, scale_factor=0.5))
        features: list[Tensor] = []
        for i in range(3):
            y = self.enter[i](features[-1] if features else x)
            if i > 0:
                y = y + self.attend[i - 1](y * self.shallow[i - 1](images[i]))
            features.append(self.encoders[i](y))
        fine, middle, coarse = features
        larger = F.interpolate(coarse, scale_factor=2)
        at_full = [fine, F.interpolate(middle, scale_factor=2), F.interpolate(larger, scale_factor=2)]
        at_half = [F.interpolate(fine, scale_factor=0.5), middle, larger]
        skips = [fuse(torch.cat(parts, dim=1)) for fuse, parts in zip(self.fuse, (at_full, at_half), strict=True)]
        y = self.decoders[2](coarse)
        outputs = [self.leave[2](y) + images[2]]
        for i in (1, 0):
            y = self.decoders[i](self.join[i](torch.cat([self.enlarge[i](y), skips[i]], dim=1)))
            outputs.append(self.leave[i](y) + images[i])
        return outputs[2], outputs[1], outputs[0]


def deep_rft() -> DeepRFT:
    """DeepRFT: blocks of eight at 32 channels; 9.6 M parameters once its kernels are multiplied out."""
    return DeepRFT()


def small() -> DeepRFT:
    """One block a stage at 8 channels, for images of 12x20."""
    return DeepRFT(8, 1)
