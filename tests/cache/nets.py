"""Networks for the cache, at the top level of a module, where a fingerprint can find them."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewrite import Fidelity, Rule
from rewrite.pattern import Call, Var

SLOPE = 0.25
TABLE = {"power": 2}
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
ARRAY = np.array([1.0, 2.0])


class Kind(enum.Enum):
    A = 1
    B = 2


@dataclass
class Options:
    gain: float = 1.0


class Config:
    def __init__(self) -> None:
        self.depth = {"a": [1, object()]}


CONFIG = Config()
LAYER = nn.Linear(1, 1)


@functools.lru_cache
def cached(power: int) -> int:
    return power + 1


def half(x: float, by: float) -> float:
    return x * by


HALF = functools.partial(half, by=0.5)


def settings() -> Any:
    return WEIGHTS, ARRAY, CONFIG.depth, LAYER, cached(1), HALF(1.0)


def leak(x: Tensor, slope: float | None = None) -> Tensor:
    return nn.functional.leaky_relu(x, SLOPE if slope is None else slope)


class Small(nn.Module):
    """A folded norm, a helper function, and attributes of every kind that a key can hold."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, channels)
        self.eps = 0.5
        self.names = ["a", ("b", 2)]
        self.kind = Kind.A
        self.options = Options()
        self.act = leak
        self.layer: Any = functools.partial(nn.LayerNorm, eps=1e-6)
        self.offset = torch.linspace(-1, 1, channels)

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        y = self.act(self.norm(self.conv(x))).mean((2, 3)) * scale + self.eps
        y = self.head(y) + self.offset * self.options.gain
        return y if shift is None else y + shift

    def configure(self) -> Any:
        return settings()

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) ** TABLE["power"]


class Other(Small):
    pass


@dataclass(frozen=True)
class Maximum(Rule):
    """``leaky_relu(x) = max(x, slope * x)``."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(torch.ops.aten.leaky_relu.default, self=Var("x"))

    def rewrite(self, match: Any, g: Any) -> Any:
        return g(torch.ops.aten.maximum.default, match.x, g(torch.ops.aten.mul.Tensor, match.x, SLOPE))


@dataclass(frozen=True)
class MaximumOfValues(Maximum):
    reads_values = True


def small(seed: int = 0, kind: type[nn.Module] = Small) -> nn.Module:
    """A network in evaluation mode whose norm is not the identity."""
    torch.manual_seed(seed)
    model: Any = kind().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.weight.uniform_(0.5, 1.5)
    return model  # type: ignore[no-any-return]
