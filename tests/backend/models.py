"""The models that the backend is tried on: four networks of timm, and a long convolution with implicit filters."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from tests.corpus import load, randomize

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 64


class LongConvolution(nn.Module):
    """A gated convolution over the whole sequence, as in Hyena (Poli et al., 2023): ``out(u * (h * (v * w)))``.

    The filter h is a small network over positions under an exponential window, applied by FFT; v and w come out of a
    short causal convolution. ``[N, L, C]`` in and out.
    """

    def __init__(self, channels: int, length: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.inward = nn.Linear(channels, 3 * channels)
        self.short = nn.Conv1d(3 * channels, 3 * channels, 3, padding=2, groups=3 * channels)
        self.filter = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, channels))
        self.skip = nn.Parameter(torch.randn(channels))
        self.outward = nn.Linear(channels, channels)
        positions = torch.linspace(0, 1, length).unsqueeze(1)
        waves = [f(2 * math.pi * k * positions) for k in (1, 2) for f in (torch.sin, torch.cos)]
        self.register_buffer("positions", torch.cat([positions, *waves], 1))
        self.register_buffer("window", torch.exp(-3 * positions))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, v, w = self.short(self.inward(self.norm(x)).transpose(1, 2))[..., :length].chunk(3, dim=1)
        y = v * w
        kernel = (self.filter(self.positions) * self.window).transpose(0, 1)
        spectrum = torch.fft.rfft(y, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + y * self.skip[:, None]
        return x + self.outward((u * y).transpose(1, 2))


class Sequence(nn.Module):
    """Two long convolutions with a batch norm between two pointwise ones, and a classifier."""

    def __init__(self, channels: int = 12, length: int = 48):
        super().__init__()
        self.blocks = nn.Sequential(LongConvolution(channels, length), LongConvolution(channels, length))
        self.mix = nn.Conv1d(channels, channels, 1)
        self.norm = nn.BatchNorm1d(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(self.blocks(x).transpose(1, 2)))
        return self.head(torch.relu(y).mean(2))


def _sequence(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sequence().eval()
    return randomize(model, seed, images("sequence", 4))


def _timm(name: str) -> Callable[[int], nn.Module]:
    def make(seed: int = 0) -> nn.Module:
        return randomize(load(name, seed), seed, images(name, 4))

    return make


def _convnext(seed: int = 0) -> nn.Module:
    """With one block of each width."""
    model = load("convnext_atto", seed)
    for stage in model.stages:
        stage.blocks = stage.blocks[:1].eval()
    return randomize(model, seed, images("convnext_atto", 4))


MODELS = {
    **{name: _timm(name) for name in ("resnet18", "repvgg_a0", "mobilenetv3_small_050")},
    "convnext_atto": _convnext,
    "sequence": _sequence,
}


def images(name: str, batch: int, seed: int = 0) -> Tensor:
    """A batch of inputs for a model: images, or sequences."""
    shape = (48, 12) if name == "sequence" else (3, SIZE, SIZE)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def distance(model: nn.Module, found: Tensor, x: Tensor) -> float:
    """The error of a result relative to that of the model itself, both against the model in float64."""
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        own = float((model(x).double() - truth).abs().max())
    return float((found.double() - truth).abs().max()) / max(own, 1e-7 * float(truth.abs().max()))


_QUICK = ("convnext_atto", "sequence")
EACH = [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in MODELS]
"""The names of all, for tests that compile each; those that take longest are left to ``make test-full``."""
