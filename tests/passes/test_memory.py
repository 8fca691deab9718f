"""Layouts that a rewrite keeps where somebody sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Node

from passes import ConvolutionAsLinear
from rewrite.graph import Graph
from rewrite.strides import same_strides
from tests.passes.rewriting import Result, apply
from tests.programs import Program, aten


def program(x: torch.Tensor, *readers: Any, dynamic: bool = True) -> tuple[Program, Graph]:
    """A 1x1 convolution and what reads it."""
    p = Program(dynamic=dynamic)
    node: Node = p(aten.conv2d.default, p.input(x), p.weight("weight", torch.randn(4, x.shape[1], 1, 1)))
    for target, *args in readers:
        node = p(target, node, *args)
    return p, p.graph(node)


def strides_kept(p: Program, graph: Graph) -> Result:
    expected = p.run(graph)[0]
    result = apply(graph, ConvolutionAsLinear())
    found = p.run(graph)[0]
    assert same_strides(found, expected)
    torch.testing.assert_close(found, expected)
    return result


LAST = torch.channels_last


@pytest.mark.parametrize(
    ("x", "copies"),
    [
        (torch.randn(2, 3, 4, 5), 1),
        (torch.randn(2, 3, 4, 5).to(memory_format=LAST), 0),
        (torch.randn(2, 3, 1, 5), 1),
        (torch.randn(2, 3, 1, 1), 0),  # where the strides say nothing
    ],
    ids=["contiguous", "channels last", "one row", "one position"],
)
def test_what_is_returned(x: torch.Tensor, copies: int):
    result = strides_kept(*program(x))
    assert result.operators.count("clone") == copies


@pytest.mark.parametrize(
    "reader",
    [(aten.relu.default,), (aten.reshape.default, [-1]), (aten.sum.default,)],
    ids=["pointwise", "reshape", "sum"],
)
def test_values_inside_have_any_layout(reader: Any):
    _, graph = program(torch.randn(2, 3, 4, 5), reader, (aten.sum.default,))
    assert "clone" not in apply(graph, ConvolutionAsLinear()).operators


def test_views_that_are_returned():
    p, graph = program(torch.randn(2, 3, 4, 5), (aten.slice.Tensor, 1, 0, 2))
    assert strides_kept(p, graph).operators.count("clone") == 1


def test_what_an_operator_reads_by_strides():
    as_strided = (aten.as_strided.default, [2, 3], [1, 7])
    p, graph = program(torch.randn(2, 3, 4, 5), as_strided, (aten.sum.dim_IntList, [1]), dynamic=False)
    expected = p.run(graph)[0]
    result = apply(graph, ConvolutionAsLinear())
    assert "clone" in result.operators
    torch.testing.assert_close(p.run(graph)[0], expected)
