"""Numbers for symbolic sizes, and small images."""

from __future__ import annotations

import pytest
import torch

from rewrite.verify.sizes import (
    Batch,
    Shrinkage,
    UndeterminedSizeError,
    batch_symbols,
    example_sizes,
    reach,
    shrinkages,
)
from tests.verify.fragments import whole
from tests.verify.program import Program

aten = torch.ops.aten


def tried(graph, odd=True, least=False):
    """The shapes of the first input that are tried, for a batch of 2."""
    fragment = whole(graph)
    data = [node for node in fragment.inputs if not graph.is_constant(node)]
    batch = Batch(batch_symbols(graph), 2)
    shape = tuple(map(batch.concrete, data[0].meta["val"].shape))
    static = [isinstance(size, int) for size in data[0].meta["val"].shape]
    return [shrinkage.apply(shape, static) for shrinkage in shrinkages([fragment], data, odd, least)]


def convolution(size, kernel, stride=1, dilation=1):
    p = Program()
    x = p.input(torch.randn(2, 3, *size))
    y = p(aten.conv2d.default, x, p.weight(torch.randn(4, 3, kernel, kernel)), None, [stride] * 2,
          [dilation * (kernel // 2)] * 2, [dilation] * 2)  # fmt: skip
    return p.graph(y)


def test_a_convolution_keeps_an_interior_borders_and_a_remainder():
    assert tried(convolution((56, 56), 3))[0] == (2, 3, 5, 7)
    assert tried(convolution((56, 56), 3), odd=False)[0] == (2, 3, 6, 8)
    assert tried(convolution((56, 56), 3, stride=2))[0] == (2, 3, 7, 9)
    assert tried(convolution((56, 56), 5, dilation=3))[0] == (2, 3, 15, 17)
    assert tried(convolution((56, 56), 3, stride=3), least=True)[0] == (2, 3, 7, 9)


def test_images_that_are_small_already_stay():
    assert tried(convolution((14, 5), 13)) == []
    assert tried(convolution((5, 56), 3))[0] == (2, 3, 5, 7)


def test_sizes_of_one_fragment_shrink_together():
    p = Program()
    x, coarse = p.input(torch.randn(2, 3, 56, 56)), p.input(torch.randn(2, 4, 28, 28))
    y = p(aten.conv2d.default, x, p.weight(torch.randn(4, 3, 3, 3)), None, [2, 2], [1, 1])
    graph = p.graph(p(aten.add.Tensor, y, coarse))
    fragment = whole(graph)
    first = next(shrinkages([fragment], [*list(fragment.inputs)[:1], coarse], odd=True))
    assert first.apply((2, 3, 56, 56), [False, True, True, True]) == (2, 3, 7, 9)
    assert first.apply((2, 4, 28, 28), [False, True, True, True]) == (2, 4, 4, 5)


def test_channels_last_programs_shrink_what_is_not_their_channels():
    p = Program()
    graph = p.graph(p(aten.linear.default, p.input(torch.randn(2, 56, 56, 96)), p.weight(torch.randn(8, 96))))
    assert tried(graph)[0] == (2, 3, 5, 96)


def test_a_reshape_keeps_the_recorded_size_where_it_would_hide_another():
    p = Program()
    graph = p.graph(p(aten.reshape.default, p.input(torch.randn(2, 56, 56, 96), batch=False), [-1, 49, 96]))
    assert tried(graph) == []
    p = Program()
    graph = p.graph(p(aten.reshape.default, p.input(torch.randn(2, 96, 56, 56), batch=False), [2, 96, -1]))
    assert tried(graph)[0] == (2, 96, 3, 5)


def test_a_slice_keeps_the_recorded_size():
    p = Program()
    graph = p.graph(p(aten.slice.Tensor, p.input(torch.randn(2, 3, 56, 56)), 2, 0, 28))
    assert tried(graph) == []


def test_a_broadcast_dimension_stays_one():
    shrinkage = Shrinkage(False, (((56, 7), (1, 1)), ((56, 9), (1, 1))))
    assert shrinkage.apply((2, 3, 1, 56), [True] * 4) == (2, 3, 1, 9)


def test_symbols_become_numbers_and_others_are_refused():
    p = Program()
    x = p.input(torch.randn(2, 3, 8), free=(2,))
    graph = p.graph(p(aten.relu.default, x))
    batch = Batch(batch_symbols(graph), 3)
    rows, _, free = x.meta["val"].shape
    assert batch.concrete(rows * 49) == 147
    with pytest.raises(UndeterminedSizeError, match="not a size of the model's inputs"):
        batch.concrete(free)
    assert Batch(batch_symbols(graph), 3, example_sizes(graph)).concrete(rows * free) == 24


def test_the_reach_of_an_edge():
    fragment = whole(convolution((56, 56), 7))
    assert reach([fragment], list(fragment.inputs)) == (4, 4, 1)
