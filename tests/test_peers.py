"""Peers are counted alike: each finds the contractions of a program, and fewer where it merges some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import Contractions, Peer, available
from benchmarks.unused import collect, left_unused, module_of

PEERS = [pytest.param(call, id=name) for name, call in available().items()]


class Layers(nn.Module):
    """One of each: grouped and pointwise convolutions, a norm that folds, a linear layer, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.grouped(x)) + self.point(x)
        return self.head(y.mean((2, 3))), self.up(y)


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_counts_what_torch_counts(peer: Peer) -> None:
    model, x = Layers().eval(), torch.randn(3, 8, 16, 16)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert peer(model, (x,)) == Contractions(4, counter.get_total_flops())


class Branches(nn.Module):
    """Two branches that are one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.point(x)


def test_a_match_is_unused_where_a_peer_computes_more() -> None:
    x = torch.randn(1, 8, 12, 12)
    collector = collect(Branches().eval(), (x,))
    (found,) = collector.found
    whole = 2 * 8 * 144 * (72 + 8)
    assert (found.before, found.after) == (Contractions(2, whole), Contractions(1, 2 * 8 * 144 * 72))
    assert found.saved.flops == whole + 8 * 144 - found.after.flops

    _, inputs = module_of(found, collector.graph)
    assert [tuple(given.shape) for given in inputs] == [(1, 8, 12, 12)]

    def idle(module: nn.Module, inputs: tuple[Tensor, ...]) -> Contractions:
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
        return Contractions(2, counter.get_total_flops())

    peers: dict[str, Peer] = {
        "idle": idle, "merging": lambda module, inputs: found.after, "failing": lambda module, inputs: 1 / 0,
    }  # fmt: skip
    (row,) = left_unused("Branches", collector, peers, {})
    assert row["unused_by"] == ["idle"]
    assert row["peers"]["failing"].startswith("ZeroDivisionError")
    assert row["saved_flops"] == found.saved.flops


def test_what_saves_no_contraction_is_not_compared() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    collector = collect(model, (torch.randn(1, 3, 8, 8),))
    assert not collector.found
    assert collector.others["fold-batch-norm-after"] == 1
