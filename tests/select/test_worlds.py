"""How values lie in memory, channels first and channels last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rewrite.graph import Graph
from rewrite.select.worlds import Layout, Worlds, channels_last, order
from rewrite.trace import capture


class Mixed(nn.Module):
    """Convolutions, a norm over channels, a residual sum, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.mix(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head((x + y.relu()).mean((2, 3)))


def mixed() -> tuple[Graph, Worlds]:
    x = torch.randn(4, 3, 10, 12)
    graph = capture(Mixed().eval(), (x,)).graph
    return graph, Worlds.of(graph, [x[:3]])


def test_values_have_the_sizes_of_the_call():
    graph, worlds = mixed()
    stem = next(node for node in graph.calls() if node.target is torch.ops.aten.conv2d.default)
    assert worlds.value(stem, Layout.FIRST).shape == (3, 8, 10, 12)
    assert worlds.bytes(stem) == 4 * 3 * 8 * 10 * 12


def test_what_convolutions_give_has_a_layout_and_what_a_norm_copies_has_none():
    graph, worlds = mixed()
    found = {}
    for node in graph.calls():
        if isinstance(node.meta["val"], Tensor):
            found.setdefault(node.target._opname, []).append(worlds.differs(node))
    assert found["conv2d"] == [True, True]
    assert found["layer_norm"] == [False]  # it copies what does not lie as it wants
    assert found["permute"] == [True, False]
    assert found["linear"] == [False]


def test_the_input_lies_as_it_is_given_in_the_first_world():
    graph, worlds = mixed()
    (x,) = graph.inputs
    assert worlds.value(x, Layout.FIRST).is_contiguous()
    assert worlds.value(x, Layout.LAST).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 7), (2, 3, 4, 5, 6)])
def test_channels_last(shape):
    x = torch.randn(shape)
    y = channels_last(x)
    assert torch.equal(x, y)
    assert order(y) == (0, *range(2, len(shape)), 1)
    assert channels_last(y).data_ptr() == y.data_ptr()


def test_dimensions_of_one_lie_anywhere():
    assert order(torch.randn(2, 3, 1, 5)) == order(torch.randn(2, 1, 3, 5).transpose(1, 2)) == (0, 1, 3)
