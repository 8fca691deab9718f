"""Layers over one input with every kind of reader: merged or not, all values stay the same to the bit.

Programs are built operator by operator with whole numbers; the oracle is the same program unmerged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Node

from passes import MergeSiblings, Simplify
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.ops import Convolution, Linear, view
from rewrite.testing import ConvSpec, assert_rule, convolutions
from tests.drawn import COSTLY
from tests.programs import Program

aten = torch.ops.aten
READERS = ("relu", "returned", "view returned", "norm", "sum", "rows", "reshape", "cat")


@dataclass(frozen=True)
class Sibling:
    """One layer and what reads it."""

    outputs: int
    bias: bool
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """Siblings of one geometry; ``kernel`` and the rest are None for linear layers."""

    siblings: tuple[Sibling, ...]
    inputs: int
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]] | None
    channels_last: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    readers = st.lists(st.sampled_from(READERS), min_size=1, max_size=2, unique=True).map(tuple)
    siblings = draw(st.lists(st.builds(Sibling, st.integers(1, 4), st.booleans(), readers), min_size=2, max_size=4))
    pairs = [
        st.tuples(st.integers(low, high), st.integers(low, high)) for low, high in ((1, 3), (1, 2), (0, 2), (1, 2))
    ]
    geometry = tuple(map(draw, pairs)) if draw(st.booleans()) else None
    return Case(tuple(siblings), draw(st.sampled_from([2, 8, 40])), geometry, draw(st.booleans()))


def numbers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).double()


def data(case: Case, batch: int) -> Tensor:
    if case.geometry is None:
        return numbers(batch, 5, case.inputs)
    x = numbers(batch, case.inputs, 6, 5)
    return x.contiguous(memory_format=torch.channels_last) if case.channels_last else x


def build(case: Case) -> tuple[Graph, Program]:
    g = Program(dynamic=True)
    x = g.input(data(case, 2))
    outputs, joined = [], []
    for i, sibling in enumerate(case.siblings):
        bias = g.weight(f"b{i}", numbers(sibling.outputs)) if sibling.bias else None
        if case.geometry is None:
            y = g(aten.linear.default, x, g.weight(f"w{i}", numbers(sibling.outputs, case.inputs)), bias)
        else:
            kernel, stride, padding, dilation = map(list, case.geometry)
            spans = zip((6, 5), kernel, padding, dilation, strict=True)
            assume(all(size + 2 * pad > step * (taps - 1) for size, taps, pad, step in spans))
            weight = g.weight(f"w{i}", numbers(sibling.outputs, case.inputs, *kernel))
            y = g(aten.conv2d.default, x, weight, bias, stride, padding, dilation)
        outputs += [read(g, y, reader) for reader in sibling.readers if reader != "cat"]
        joined += [y] * ("cat" in sibling.readers)
    if joined:
        outputs.append(g(aten.cat.default, joined, -1 if case.geometry is None else 1))
    return g.graph(*outputs), g


def read(g: Program, y: Node, reader: str) -> Node:
    shape = y.meta["val"].shape
    if reader == "view returned":
        return g(aten.slice.Tensor, y, 1, 0, 1)
    if reader == "norm":  # whole numbers stay whole
        return g(aten.cumsum.default, y, 1)
    if reader == "sum":
        return g(aten.sum.dim_IntList, y, [1])
    if reader == "rows":
        return g(aten.mm.default, g(aten.reshape.default, y, [-1, shape[-1]]), g.weight(f"m{len(g.weights)}",
                 numbers(int(shape[-1]), 2)))  # fmt: skip
    if reader == "reshape":
        return g(aten.neg.default, g(aten.flatten.using_ints, y, 1))
    return g(aten.relu.default, y) if reader == "relu" else y


def layers(graph: Graph) -> list[Any]:
    found = [view(node) for node in graph.calls()]
    return [layer for layer in found if isinstance(layer, (Convolution, Linear)) and not graph.is_constant(layer.node)]


@given(cases())
@settings(max_examples=min(60, 2 * settings.default.max_examples))
def test_all_values_stay_and_fewer_layers_read_the_input(case: Case):
    graph, g = build(case)
    inputs = [g.inputs[0], *(data(case, batch) for batch in (0, 1, 3))]
    expected = [g.run(graph, x) for x in inputs]
    x = graph.inputs[0]
    before = sum(layer.input is x for layer in layers(graph))
    record = Driver(graph).run([MergeSiblings(convolutions=True)])[0]
    assert not record.rejections
    graph.check()
    assert not Driver(graph).run([MergeSiblings(convolutions=True)])[0].commits
    after = sum(layer.input is x for layer in layers(graph))
    assert after < before or not record.commits
    for given_, wanted in zip(inputs, expected, strict=True):
        found = g.run(graph, given_)
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a, b)
        if len(given_):
            owners = [{y.untyped_storage().data_ptr() for y in values} for values in (found, wanted)]
            assert len(owners[0]) == len(owners[1])
    assert [strides(y) for y in g.run(graph)] == [strides(y) for y in expected[0]]


def strides(y: Tensor) -> list[int]:
    """The strides that mean something."""
    return [stride for size, stride in zip(y.shape, y.stride(), strict=True) if size > 1]


@given(cases())
@COSTLY
def test_readers_that_need_no_copy_let_all_siblings_merge(case: Case):
    easy = tuple(Sibling(sibling.outputs, sibling.bias, ("relu", "sum", "cat")) for sibling in case.siblings)
    graph, g = build(Case(easy, case.inputs, case.geometry, case.channels_last))
    expected = g.run(graph)
    assert len(Driver(graph).run([MergeSiblings(convolutions=True)])[0].commits) == 1
    assert len(layers(graph)) == 1
    Driver(graph).run([Simplify()])
    assert all(torch.equal(a, b) for a, b in zip(g.run(graph), expected, strict=True))


class Heads(nn.Module):
    """Layers over one input, each with its own function."""

    def __init__(self, *heads: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(x).sigmoid() for head in self.heads]


@given(convolutions(dims=(1, 2), max_kernel=4, depthwise=False, modes=["zeros"]), st.integers(2, 3), st.booleans())
@settings(max_examples=6)
def test_everything_that_a_rule_promises(spec: ConvSpec, count: int, bias: bool):
    spec = replace(spec, groups=1, padding="valid", sizes=tuple(size + 8 for size in spec.sizes))
    layer = spec.module()
    others = [
        type(layer)(layer.in_channels, i + 1, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=bias)
        for i in range(count)
    ]
    model = Heads(layer, *(other.to(spec.dtype) for other in others)).eval()
    assert_rule(MergeSiblings(convolutions=True), model, spec.inputs(), matches=1 if spec.batch else None)
