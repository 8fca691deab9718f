"""Pieces of a tensor that are put together again, to the bit."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Node

from passes.simplify import JoinPieces
from rewrite.driver import Driver
from rewrite.verify import MatchVerifier
from tests.programs import Program, aten, names, same_bits, special

Build = Callable[[Program, Node], Any]


def pieces(g: Program, x: Node, sizes: list[int], dim: int = 1) -> list[Node]:
    split = g(aten.split_with_sizes.default, x, sizes, dim)
    return [g(operator.getitem, split, i) for i in range(len(sizes))]


def cat(g: Program, parts: list[Node], dim: int = 1) -> Node:
    return g(aten.cat.default, parts, dim)


def relu(g: Program, x: Node) -> Node:
    return g(aten.relu.default, x)


def all_of(g: Program, x: Node) -> Node:
    return cat(g, pieces(g, relu(g, x), [1, 2, 3]))


def among_others(g: Program, x: Node) -> Node:
    y = relu(g, x)
    return cat(g, [x, *pieces(g, y, [4, 2]), *pieces(g, x, [3, 3])])


def read_elsewhere(g: Program, x: Node) -> tuple[Node, Node]:
    parts = pieces(g, relu(g, x), [1, 2, 3])
    return cat(g, parts), g(aten.neg.default, parts[1])


def read_twice(g: Program, x: Node) -> Node:
    parts = pieces(g, relu(g, x), [2, 4])
    return cat(g, [*parts, *parts])


def once_and_one_again(g: Program, x: Node) -> Node:
    first, second = pieces(g, relu(g, x), [2, 4])
    return cat(g, [first, second, first])


def one_before_all(g: Program, x: Node) -> tuple[Node, Node]:
    first, second = pieces(g, relu(g, x), [2, 4])
    return cat(g, [second, first, second, second]), g(aten.neg.default, first)


JOINED: dict[str, tuple[Build, list[str]]] = {
    "all of them": (all_of, ["relu"]),
    "negative dimension": (lambda g, x: cat(g, pieces(g, relu(g, x), [2, 3], -1), 2), ["relu"]),
    "chunks": (lambda g, x: cat(g, chunks(g, relu(g, x))), ["relu"]),
    "among others": (among_others, ["relu", "cat"]),
    "read elsewhere": (read_elsewhere, ["relu", "split_with_sizes", "getitem", "neg"]),
    "twice": (read_twice, ["relu", "cat"]),
    "and one again": (once_and_one_again, ["relu", "split_with_sizes", "getitem", "cat"]),
    "one before": (one_before_all, ["relu", "split_with_sizes", "getitem", "getitem", "cat", "neg"]),
}


def chunks(g: Program, x: Node) -> list[Node]:
    split = g(aten.split.Tensor, x, 4, 1)
    return [g(operator.getitem, split, i) for i in range(2)]


KEPT: dict[str, Build] = {
    "another order": lambda g, x: cat(g, pieces(g, relu(g, x), [3, 3])[::-1]),
    "another dimension": lambda g, x: cat(g, pieces(g, relu(g, x), [3, 3], 1), 2),
    "one is missing": lambda g, x: cat(g, pieces(g, relu(g, x), [1, 2, 3])[:2]),
    "one between": lambda g, x: cat(g, [(p := pieces(g, relu(g, x), [3, 3]))[0], x, p[1]]),
    "of two splits": lambda g, x: cat(
        g, [pieces(g, y := relu(g, x), [3, 3])[0], pieces(g, y, [2, 4])[1]]
    ),
    "of two tensors": lambda g, x: cat(g, [pieces(g, relu(g, x), [3, 3])[0], pieces(g, x, [3, 3])[1]]),
}  # fmt: skip


def run(build: Build) -> tuple[list[str], list[str]]:
    """The operators that are left and the reasons of refusals; the result is the same to the bit."""
    g = Program(dynamic=True)
    x = g.input(special(2, 6, 5))
    outputs = build(g, x)
    graph = g.graph(*outputs) if isinstance(outputs, tuple) else g.graph(outputs)
    inputs = [g.inputs[0], special(1, 6, 5), special(0, 6, 5)]
    expected = [g.run(graph, data) for data in inputs]
    record = Driver(graph, MatchVerifier()).run([JoinPieces()])[0]
    assert not record.rejections
    graph.check()
    assert not Driver(graph, MatchVerifier()).run([JoinPieces()])[0].commits
    for data, before in zip(inputs, expected, strict=True):
        after = g.run(graph, data)
        assert same_bits(after, before)
        assert [y.stride() for y in after] == [y.stride() for y in before]
    return names(graph), [refused.reason for refused in record.refused]


@pytest.mark.parametrize("name", JOINED)
def test_the_whole_is_read(name: str):
    build, left = JOINED[name]
    assert run(build) == (left, [])


@pytest.mark.parametrize("name", KEPT)
def test_other_concatenations_stay(name: str):
    found, reasons = run(KEPT[name])
    assert "cat" in found
    assert not reasons


def test_a_copy_of_an_input_stays_a_copy():
    found, reasons = run(lambda g, x: cat(g, pieces(g, x, [3, 3])))
    assert "cat" in found
    assert reasons == ["the model returns a tensor of its own, which would become its input or weight itself"]


def test_two_outputs_stay_apart():
    found, reasons = run(lambda g, x: (y := relu(g, x), cat(g, pieces(g, y, [3, 3]))))
    assert "cat" in found
    assert reasons == ["the model returns both the copy and the original, which would share memory"]


def test_strides_that_somebody_reads_stay():
    def build(g: Program, x: Node) -> Node:
        y = g(aten.transpose.int, relu(g, x), 1, 2)
        return g(aten.exp.default, cat(g, pieces(g, y, [2, 3])))

    found, reasons = run(build)
    assert "cat" in found
    assert reasons == ["the copy changes the strides that another operator reads"]


def test_a_shorter_concatenation_has_the_strides_of_the_longer_one():
    g = Program()
    x = g.input(torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last))
    whole = g(aten.relu.default, x)
    graph = g.graph(g(aten.cat.default, [*pieces(g, whole, [1, 3]), x], 1))
    before = g.run(graph)[0]
    record = Driver(graph, MatchVerifier()).run([JoinPieces()])[0]
    assert record.commits
    assert g.run(graph)[0].stride() == before.stride()
