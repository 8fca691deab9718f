"""Networks of long convolutions that no package has: gated ones over whole sequences, and Conformer's module."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.sgconv import GlobalConv


class CausalConv(nn.Module):
    """A causal depthwise convolution of [N, C, L] whose kernels are as long as the sequence, plus the input, scaled.

    The kernels are SGConv's, computed once. ``fft`` writes the convolution as a product of spectra.
    """

    def __init__(self, channels: int, length: int, *, fft: bool = False):
        super().__init__()
        self.length, self.fft = length, fft
        with torch.no_grad():
            kernel = GlobalConv(channels, length, points=32).kernel(length)
        self.kernel = nn.Parameter(kernel.flip(-1)[:, None].contiguous())
        self.skip = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        if self.fft:
            size = 2 * length
            spectrum = torch.fft.rfft(x, n=size) * torch.fft.rfft(self.kernel[:, 0].flip(-1), n=size)
            y = torch.fft.irfft(spectrum, n=size)[..., :length]
        else:
            y = F.conv1d(F.pad(x, (self.length - 1, 0)), self.kernel, groups=x.shape[1])
        return y + x * self.skip[:, None]


class GatedLayer(nn.Module):
    """A norm, and a long convolution of one half of the channels that the other half gates; on a residual stream."""

    def __init__(self, channels: int, length: int, *, fft: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Linear(channels, 2 * channels)
        self.conv = CausalConv(channels, length, fft=fft)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        y = self.conv(value.transpose(1, 2)).transpose(1, 2)
        return x + self.leave(y * F.silu(gate))


def gated(channels: int, depth: int, length: int, *, fft: bool = False) -> nn.Module:
    """A stack of gated long convolutions over [N, L, C]."""
    return nn.Sequential(*(GatedLayer(channels, length, fft=fft) for _ in range(depth)))


def by_fft(model: nn.Module) -> nn.Module:
    """A copy that computes its long convolutions by FFT: in float64 as true as a sum of products, and soon done."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, CausalConv):
            module.fft = True
    return model


def fix_flags(model: nn.Module) -> None:
    """Make the flags of SGConv numbers: ``torch.export``, which exporters use, takes no branch on a buffer's value."""
    for module in model.modules():
        if isinstance(module, GlobalConv):
            done = bool(module.initialized)
            del module.initialized
            module.initialized = done


class ConformerConv(nn.Module):
    """The convolution module of Conformer (Gulati et al., arXiv:2005.08100), [N, L, C] to the same."""

    def __init__(self, channels: int = 256, kernel: int = 31):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Conv1d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.leave = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.enter(self.norm(x).transpose(1, 2)), dim=1)
        y = F.silu(self.batch_norm(self.depthwise(y)))
        return x + self.leave(y).transpose(1, 2)
