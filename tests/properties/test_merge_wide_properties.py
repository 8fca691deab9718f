"""Wide branches and low-rank parts over drawn sums: in whole numbers the results stay the same to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Node

from passes import MergeLowRank, MergeSelection, MergeWide
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.ops import Convolution, Linear, view
from rewrite.pipeline import Step
from rewrite.verify import MatchVerifier
from tests.programs import Program

aten = torch.ops.aten
FUNCTIONS = {
    "relu": lambda g, x: g(aten.relu.default, x),
    "abs": lambda g, x: g(aten.abs.default, x),
    "square": lambda g, x: g(aten.square.default, x),
    "clamp": lambda g, x: g(aten.clamp.default, x, -5, 7),
}


@dataclass(frozen=True)
class Branch:
    """``coefficient`` times two layers with a function between, or the input, where ``hidden`` is 0."""

    hidden: int
    function: str
    biases: tuple[bool, bool]
    coefficient: int


branches = st.lists(
    st.builds(
        Branch,
        st.integers(0, 4),
        st.sampled_from(["relu", "relu", "abs", "square", "clamp"]),
        st.tuples(st.booleans(), st.booleans()),
        st.sampled_from([1, 1, -1, 3]),
    ),
    min_size=2,
    max_size=5,
)


def numbers(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape).double()


def layer(g: Program, x: Node, inputs: int, outputs: int, bias: bool, kernel: int = 1) -> Node:
    """A linear layer over three dimensions, a convolution that keeps the size over four."""
    number = len(g.weights)
    b = g.weight(f"b{number}", numbers(outputs)) if bias else None
    if x.meta["val"].dim() == 3:
        return g(aten.linear.default, x, g.weight(f"w{number}", numbers(outputs, inputs)), b)
    weight = g.weight(f"w{number}", numbers(outputs, inputs, kernel, kernel))
    return g(aten.conv2d.default, x, weight, b, [1, 1], [kernel // 2] * 2)


def total(g: Program, terms: list[tuple[Node, int]]) -> Node:
    result: Node | None = None
    for node, coefficient in terms:
        if result is None:
            result = node if coefficient == 1 else g(aten.mul.Tensor, node, coefficient)
        elif coefficient == -1:
            result = g(aten.sub.Tensor, result, node)
        else:
            result = g(aten.add.Tensor, result, node, alpha=coefficient)
    assert result is not None
    return result


def start(image: bool, channels: int = 3) -> tuple[Program, Node]:
    g = Program(dynamic=True)
    return g, g.input(numbers(2, channels, 4, 3) if image else numbers(2, 4, channels))


def layers(graph: Graph) -> list[Any]:
    found = [view(node) for node in graph.calls() if not graph.is_constant(node)]
    return [part for part in found if isinstance(part, (Convolution, Linear))]


def rewritten(g: Program, graph: Graph, step: Step) -> int:
    """How many rewrites there are; all values stay the same, for any batch."""
    shapes = [tuple(x.shape) for x in g.inputs]
    calls = [[numbers(batch, *shape[1:]) for shape in shapes] for batch in (0, 1, 3)]
    expected = [g.run(graph, *call) for call in calls]
    record = Driver(graph, MatchVerifier()).run([step])[0]
    assert not record.rejections
    graph.check()
    assert not Driver(graph).run([step])[0].commits
    for call, wanted in zip(calls, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(g.run(graph, *call), wanted, strict=True))
    return len(record.commits)


@given(branches, st.booleans(), st.sampled_from([1, 3]))
@settings(max_examples=min(25, settings.default.max_examples))
def test_branches_with_the_same_function_become_one(drawn: list[Branch], image: bool, kernel: int):
    g, x = start(image)
    terms = []
    for branch in drawn:
        node = x
        if branch.hidden:
            hidden = FUNCTIONS[branch.function](g, layer(g, x, 3, branch.hidden, branch.biases[0], kernel))
            node = layer(g, hidden, branch.hidden, 3, branch.biases[1])
        terms.append((node, branch.coefficient))
    # a product at the start is no term of the sum
    scaled = drawn[0].hidden and drawn[0].coefficient != 1
    graph = g.graph(total(g, terms))
    rewritten(g, graph, MergeWide())
    kinds = {branch.function for branch in drawn[1 if scaled else 0 :] if branch.hidden}
    assert len(layers(graph)) == 2 * (len(kinds) + bool(scaled))


@given(
    st.booleans(),
    st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    st.integers(1, 2),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.tuples(st.sampled_from([1, -1, 2]), st.sampled_from([1, -1, 2])),
    st.booleans(),
)
@settings(max_examples=min(30, settings.default.max_examples))
def test_two_layers_in_a_row_join_the_layer_beside_them(
    image: bool, kernels: tuple[int, int], rank: int, biases: tuple[bool, ...], factors: tuple[int, int], more: bool
):
    g, x = start(image)
    host = layer(g, x, 3, 5, biases[0], 3)
    first = layer(g, x, 3, rank, biases[1], kernels[0])
    second = layer(g, first, rank, 5, biases[2], kernels[1])
    terms = [(second, 1), (host, factors[0])]
    if more:
        terms = [(layer(g, g(aten.relu.default, x), 3, 5, True), 1), (host, factors[0]), (second, factors[1])]
    graph = g.graph(total(g, terms))
    border = image and kernels[1] == 3 and (biases[1] or kernels[0] == 3)
    assert rewritten(g, graph, MergeLowRank()) == (0 if border else 1)
    assert len(layers(graph)) == more + (3 if border else 1)


@given(st.integers(-3, 3), st.booleans(), st.booleans(), st.booleans())
def test_a_gate_of_any_value_interpolates(gate: int, negated: bool, swapped: bool, channels: bool):
    g = Program(dynamic=True)
    p, q = (g.input(numbers(2, 3, 4)) for _ in range(2))
    a = g.input(torch.full((2, 1, 4) if channels else (2, 3, 1), float(gate), dtype=torch.float64))
    rest = g(aten.add.Tensor, g(aten.neg.default, a), 1) if negated else g(aten.rsub.Scalar, a, 1)
    left, right = g(aten.mul.Tensor, a, p), g(aten.mul.Tensor, q, rest)
    graph = g.graph(g(aten.add.Tensor, right, left) if swapped else g(aten.add.Tensor, left, right))
    assert rewritten(g, graph, MergeSelection()) == 1
