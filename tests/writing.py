"""Models of rows of three numbers that write in forward, with and without the knowledge of autograd."""

from __future__ import annotations

import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)


class ClampedActivation(Two):
    def forward(self, x):
        y = self.first(x)
        with torch.no_grad():
            y.clamp_(-0.3, 0.3)
        return self.second(y)


class ClampedWeight(Two):
    def forward(self, x):
        self.first.weight.detach().clamp_(-0.1, 0.1)
        return self.second(self.first(x))


class ClampedData(Two):
    def forward(self, x):
        y = self.first(x)
        y.data.clamp_(-0.1, 0.1)
        return self.second(y).square()


class BoundedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(10, 4, max_norm=1.0), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.table((x.abs() * 5).long()[:, 0]))


class Overwritten(Two):
    def forward(self, x):
        y = self.first(x)
        y[:, 0] = y[:, 1] * 3
        y[:, 2] = 1
        return self.second(y)


class StatisticsOnly(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        with torch.no_grad():
            y = self.norm(x)
        return self.head(y)


class MovingAverage(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = self.first(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * y.mean(0))
        return self.second(y - self.mean)


HIDDEN = (ClampedActivation, ClampedWeight, ClampedData, BoundedEmbedding)
"""Eager keeps gradients that a functional graph would lose."""

SEEN = (Overwritten, StatisticsOnly, MovingAverage)
"""A functional graph has the same gradients."""
