"""A small network with all that a program has to carry: folded norms, keywords, containers, a buffer it writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.result.programs import spread


class Counting(nn.Module):
    """A convolution with a norm, a head, a count of the calls, and a learned table that no module registers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 5)
        self.register_buffer("count", torch.zeros(()))
        self.table = torch.linspace(-1, 1, 5)

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Any:
        self.count.add_(1)
        y = self.fc(self.body(x).mean((2, 3))) * scale + self.table
        return {"y": y if shift is None else y + shift, "mean": self.body(x).mean()}


def counting(seed: int = 0) -> Counting:
    torch.manual_seed(seed)
    return spread(Counting(), seed).eval()
