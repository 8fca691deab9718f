"""What command lines of tests name: modules, factories and checks."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

from tests.result.programs import spread

aten = torch.ops.aten


class Branches(nn.Module):
    """A RepVGG block and a classifier: one rewrite by ``merge-branches``, two by ``fold-constants``."""

    def __init__(self, width: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, width, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.narrow = nn.Conv2d(3, width, 1)
        self.head = nn.Linear(width, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.wide(x)) + self.narrow(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).relu().mean((2, 3)))


class Tokens(nn.Module):
    """Takes whole numbers, and truth values by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.table(ids)
        return x if mask is None else x * mask.unsqueeze(-1)


class Branching(nn.Module):
    """Cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Timid(nn.Module):
    """Says what it takes as timm does."""

    pretrained_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def branches(width: int = 4, bias: bool = True) -> nn.Module:
    return spread(Branches(width, bias))


MODULE = Timid()
NUMBER = 3


def sized(width: int) -> nn.Module:
    return Branches(width)


def number() -> int:
    return 3


def broken() -> nn.Module:
    raise KeyError("no such weights")


def leaving() -> nn.Module:
    sys.exit("bye")


def loud() -> nn.Module:
    print("made loudly")  # noqa: T201
    warnings.warn("careful\nwith this", stacklevel=2)
    return Timid()


# -- checks -----------------------------------------------------------------------------------------------------------


def has_two_convolutions(fast: nn.Module, x: Tensor) -> bool:
    assert fast(x).shape[1] == 2
    return sum(node.target is aten.conv2d.default for node in fast.graph_module.graph.nodes) == 2


def asserts_two_convolutions(fast: nn.Module, x: Tensor) -> None:
    assert has_two_convolutions(fast, x), "one convolution only"


def never(fast: nn.Module, x: Tensor) -> bool:
    return False


def fails(fast: nn.Module, x: Tensor) -> bool:
    raise LookupError("no answer")
