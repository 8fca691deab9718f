"""Compact Convolutional Transformer: convolutions make the tokens, attention pools the sequence.

Hassani, Walton, Shah, Abuduweili, Li, Shi: Escaping the Big Data Paradigm with Compact Transformers, 2021,
arXiv:2104.05704.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvTokenizer(nn.Module):
    """Convolution, ReLU and max pool, some times over; images [N, 3, H, W] to tokens [N, L, width]."""

    def __init__(self, width: int, kernel: int, layers: int, hidden: int = 64) -> None:
        super().__init__()
        stride, padding = max(1, kernel // 2 - 1), max(1, kernel // 2)
        sizes = [3, *[hidden] * (layers - 1), width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel, stride, padding, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
                )
                for a, b in pairwise(sizes)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(2, 3).transpose(-2, -1)


class Attention(nn.Module):
    """Self-attention over [N, L, C], queries, keys and values from one product without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * self.scale
        return self.project((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """An encoder layer. Its second norm lies on the stream itself, not on the branch."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.second_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, ratio * width)
        self.project = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second_norm(x + self.attention(self.first_norm(x)))
        return x + self.project(F.gelu(self.expand(x)))


class CompactTransformer(nn.Module):
    """The classifier: images [N, 3, size, size] to [N, classes]."""

    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        heads: int,
        ratio: int,
        *,
        kernel: int,
        convolutions: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.tokenizer = ConvTokenizer(width, kernel, convolutions)
        length = self.tokenizer(torch.zeros(1, 3, size, size)).shape[1]
        self.positions = nn.Parameter(0.2 * torch.randn(1, length, width))
        self.layers = nn.Sequential(*(Layer(width, heads, ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layers(self.tokenizer(x) + self.positions))
        # sequence pooling: an average of the tokens whose weights come from the tokens
        weights = self.pool(x).softmax(1)
        return self.head((weights.transpose(-2, -1) @ x).squeeze(-2))


def cct_7_3x1() -> CompactTransformer:
    """CCT-7/3x1 for CIFAR-10, 3.76 M parameters."""
    return CompactTransformer(32, 256, 7, 4, 2, kernel=3, convolutions=1, classes=10)


def cct_14_7x2() -> CompactTransformer:
    """CCT-14/7x2 for ImageNet, 22.36 M parameters."""
    return CompactTransformer(224, 384, 14, 6, 3, kernel=7, convolutions=2, classes=1000)


def small() -> CompactTransformer:
    """Two layers over 4x4 tokens of images of 16x16."""
    return CompactTransformer(16, 16, 2, 2, 2, kernel=3, convolutions=2, classes=10)
