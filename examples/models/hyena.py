"""Hyena: long convolutions with implicit filters, between gates.

Poli, Massaroli, Nguyen, Fu, Dao, Baccus, Bengio, Ermon, Ré: Hyena Hierarchy, ICML 2023, arXiv:2302.10866.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def long_conv(x: Tensor, kernel: Tensor, skip: Tensor) -> Tensor:
    """The causal convolution of [N, C, L] with kernels [C, L], plus the input times ``skip`` [C]."""
    length = x.shape[-1]
    size = 2 * length
    spectrum = torch.fft.rfft(x, n=size) * (torch.fft.rfft(kernel, n=size) / size)
    return torch.fft.irfft(spectrum, n=size, norm="forward")[..., :length] + x * skip[:, None]


class Sine(nn.Module):
    """``sin(frequency * x)``."""

    def __init__(self, width: int, frequency: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(frequency * torch.ones(1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


class ImplicitFilter(nn.Module):
    """Filters [C, L] as a small network of time, under decays of different speeds.

    Args:
        channels: C.
        length: the longest sequence.
        features: how many numbers describe a time: itself, and sines and cosines of it.
        width: of the network.
        frequency: of its sines.
    """

    def __init__(self, channels: int, length: int, *, features: int = 5, width: int = 64, frequency: float = 14.0):
        super().__init__()
        bands = (features - 1) // 2
        time = torch.linspace(0, 1, length)[:, None]
        turns = 2 * math.pi * torch.arange(length)[:, None] / length
        waves = torch.exp(-1j * torch.linspace(1e-4, bands - 1, bands) * turns)
        self.features = nn.Parameter(torch.cat([time, waves.real, waves.imag], dim=-1))
        self.register_buffer("time", time)
        sine = Sine(width, frequency)
        self.network = nn.Sequential(
            nn.Linear(features, width), sine, nn.Linear(width, width), sine, nn.Linear(width, width), sine,
            nn.Linear(width, channels, bias=False),
        )  # fmt: skip
        # the fastest filter decays to one hundredth over 0.3 of the sequence, the slowest over 1.5
        self.register_buffer("decay", torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, channels))

    def forward(self, length: int) -> Tensor:
        kernel = self.network(self.features[:length])
        return (kernel * torch.exp(-self.time[:length] * self.decay.abs())).transpose(0, 1)


class HyenaOperator(nn.Module):
    """Projections, a short convolution, and ``order - 1`` long ones between gates; [N, L, C] to the same."""

    def __init__(self, channels: int, length: int, order: int = 2, **options: float) -> None:
        super().__init__()
        self.channels, self.length, self.order = channels, length, order
        inner = (order + 1) * channels
        self.enter = nn.Linear(channels, inner)
        self.short = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.filter = ImplicitFilter((order - 1) * channels, length, **options)
        self.skip = nn.Parameter(torch.randn((order - 1) * channels))
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        length = min(x.shape[-2], self.length)
        x = self.short(self.enter(x).transpose(-1, -2))[..., :length]
        *gates, y = x.split(self.channels, dim=1)
        kernels = self.filter(length).unflatten(0, (self.order - 1, self.channels))
        skips = self.skip.unflatten(0, (self.order - 1, self.channels))
        for gate, kernel, skip in zip(reversed(gates[1:]), kernels, skips, strict=True):
            y = long_conv(y * gate, kernel, skip)
        return self.leave((y * gates[0]).transpose(-1, -2))


class Layer(nn.Module):
    """The operator and a two-layer network, each on a residual stream behind a norm."""

    def __init__(self, channels: int, hidden: int, operator: HyenaOperator) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(channels)
        self.operator = operator
        self.second_norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.operator(self.first_norm(x))
        return x + self.project(F.gelu(self.expand(self.second_norm(x)), approximate="tanh"))


class Hyena(nn.Module):
    """The language model: tokens [N, L] to logits [N, L, vocabulary]."""

    def __init__(
        self, vocabulary: int, channels: int, hidden: int, depth: int, length: int, order: int = 2, **options: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, channels)
        self.layers = nn.Sequential(
            *(Layer(channels, hidden, HyenaOperator(channels, length, order, **options)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embedding(tokens))))


def hyena_125m() -> Hyena:
    """Hyena-125M for sequences of 2048 tokens."""
    return Hyena(50257, 768, 1536, 18, 2048, features=33)


def small() -> Hyena:
    """Two layers of order three for sequences of 24 tokens."""
    return Hyena(32, 8, 16, 2, 24, order=3, width=8)
