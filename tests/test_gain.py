"""Estimated savings against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rewrite.between import LIMIT, between
from rewrite.flops import Sizes
from rewrite.gain import BYTES_PER_SECOND, FLOPS_PER_SECOND, NOMINAL, NOTHING, Rates, Work, gain, total, work
from rewrite.ops import Convolution, View
from rewrite.trace import capture
from tests.programs import Program, aten


def conv_relu():
    """A convolution of 3 to 4 channels, 5x5 to 3x3, and a rectifier, for one image."""
    program = Program()
    x = program.input(torch.randn(1, 3, 5, 5))
    conv = program(aten.conv2d.default, x, program.weight("w", torch.randn(4, 3, 3, 3)))
    relu = program(aten.relu.default, conv)
    flat = program(aten.reshape.default, relu, [1, -1])
    return program.graph(flat), conv, relu, flat


CONV = Work(2 * 36 * 27, 4 * (75 + 108 + 36), max(1944 / FLOPS_PER_SECOND, 876 / BYTES_PER_SECOND))
RELU = Work(36, 4 * 72, 288 / BYTES_PER_SECOND)


def test_work_is_arithmetic_and_traffic_and_the_longer_of_their_times():
    graph, conv, relu, flat = conv_relu()
    sizes = Sizes(graph)
    assert work([conv], sizes) == CONV
    assert work([relu], sizes) == RELU
    assert work([flat], sizes) == NOTHING
    assert total(graph) == CONV + RELU


def test_a_large_layer_is_bound_by_arithmetic():
    graph = capture(nn.Conv2d(64, 64, 3).eval(), (torch.randn(2, 64, 20, 20),)).graph
    assert total(graph).seconds == 2 * 64 * 18 * 18 * 64 * 9 / FLOPS_PER_SECOND


def test_another_machine_takes_another_time_for_the_same_work():
    graph, conv, relu, _ = conv_relu()
    sizes = Sizes(graph)
    assert Rates(FLOPS_PER_SECOND, BYTES_PER_SECOND) == NOMINAL
    rates = Rates(flops=1944.0, bytes=4 * 72.0)
    assert work([conv], sizes, rates) == Work(CONV.flops, CONV.bytes, 876 / 288)
    assert work([conv], sizes, Rates(flops=1944.0)) == Work(CONV.flops, CONV.bytes, 1.0)
    assert gain([conv, relu], sizes, rates=rates) == Work(RELU.flops, RELU.bytes, 1.0)
    assert gain([conv, relu], sizes, (), rates) == total(graph, rates)


def test_a_norm_is_counted_once_and_for_one_sample():
    graph = capture(nn.BatchNorm2d(3).eval(), (torch.randn(2, 3, 4, 4),)).graph
    assert total(graph).flops == 48
    assert total(graph).bytes == 4 * (48 + 48 + 4 * 3)


@pytest.mark.parametrize(("keeps", "saved"), [(None, RELU), ((Convolution,), RELU), ((), CONV + RELU)])
def test_what_vanishes_depends_on_what_is_kept(keeps: tuple[type[View], ...] | None, saved: Work):
    graph, conv, relu, flat = conv_relu()
    assert gain((conv, relu, flat), Sizes(graph), keeps) == saved


def test_a_beginning_of_one_operator_counts_whole():
    graph, conv, relu, _ = conv_relu()
    assert gain((relu,), Sizes(graph)) == RELU
    assert gain((conv,), Sizes(graph), (Convolution,)) == NOTHING
    assert gain((), Sizes(graph)) == NOTHING


def test_the_way_between_two_operators_ends_where_it_forks_or_is_long():
    program = Program()
    x = program.input(torch.randn(3))
    bottom = program(aten.sin.default, x)
    way = [bottom]
    for _ in range(LIMIT + 1):
        way.append(program(aten.relu.default, way[-1]))
    fork = program(aten.add.Tensor, way[1], x)
    shifted = program(aten.add.Tensor, way[1], program.weight("w", torch.randn(3)))
    graph = program.graph(way[-1], fork, shifted)

    def found(node):
        return between(graph, node, lambda node: node is bottom)

    assert found(bottom) == (bottom, ())
    assert found(way[LIMIT]) == (bottom, tuple(way[1 : LIMIT + 1]))
    assert found(way[LIMIT + 1]) is None
    assert found(fork) is None
    assert found(shifted) == (bottom, (way[1], shifted))
