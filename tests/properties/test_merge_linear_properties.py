"""Two layers in a row over every geometry: merged or not, in whole numbers their result stays the same to the bit.

Programs are built operator by operator; the oracle is torch's own operators on the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Node

from passes import MergeLinear
from rewrite import cost
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.ops import Convolution, Linear, view
from rewrite.testing import assert_rule, convolutions, linears
from tests.passes.rewriting import Result, folded_graph
from tests.programs import Program

aten = torch.ops.aten
PLAIN = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


@dataclass(frozen=True)
class Axis:
    """One dimension of one layer."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1


@dataclass(frozen=True)
class Layer:
    """A convolution."""

    axes: tuple[Axis, ...]
    outputs: int
    groups: int
    bias: bool
    transposed: bool = False


@dataclass(frozen=True)
class Case:
    """Two convolutions over an input of these sizes, the first padded between as ``mode`` and ``amount`` say."""

    sizes: tuple[int, ...]
    inputs: int
    first: Layer
    second: Layer
    mode: str = ""
    amount: int = 0


@st.composite
def axes(draw: st.DrawFn, pointwise: bool) -> Axis:
    if pointwise and draw(st.integers(0, 3)):
        return Axis()
    kernel = draw(st.integers(1, 4))
    padding = draw(st.one_of(st.just(0), st.integers(0, kernel)))
    return Axis(kernel, draw(st.integers(1, 3)), padding, draw(st.integers(1, 3)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Pairs of all kinds; the value between is mostly wide, so that merging pays."""
    count = draw(st.sampled_from([1, 1, 2, 2, 3]))
    inputs, outputs = draw(st.sampled_from([2, 4])), draw(st.sampled_from([2, 4]))
    groups = st.sampled_from([1, 1, 1, 2])
    pointwise = draw(st.sampled_from([(True, False), (False, True), (False, False), (True, True)]))
    transposed = draw(st.sampled_from([(False, False)] * 4 + [(True, False), (False, True)]))
    widths = (draw(st.sampled_from([4, 60, 400])), outputs)
    layers = [
        Layer(tuple(draw(axes(point)) for _ in range(count)), width, draw(groups), draw(st.booleans()), flipped)
        for point, width, flipped in zip(pointwise, widths, transposed, strict=True)
    ]
    mode = draw(st.sampled_from(["", "", "", "constant", "replicate", "reflect"]))
    sizes = tuple(draw(st.integers(1, 9 if count < 3 else 5)) for _ in range(count))
    return Case(sizes, inputs, *layers, mode, draw(st.integers(-1, 2)) if mode else 0)


def numbers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).double()


def build(case: Case) -> tuple[Graph, Program]:
    g = Program(dynamic=True)
    x = g.input(numbers(2, case.inputs, *case.sizes))
    x = place(g, x, case.first, case.inputs)
    if case.mode:
        flat = [case.amount] * (2 * len(case.sizes))
        least = 1 if case.mode != "reflect" else case.amount + 1
        assume(all(size >= max(least, 1 - 2 * case.amount) for size in x.meta["val"].shape[2:]))
        x = g(aten.pad.default, x, flat, case.mode)
    return g.graph(place(g, x, case.second, case.first.outputs)), g


def place(g: Program, x: Node, layer: Layer, inputs: int) -> Node:
    stride, padding, dilation = ([getattr(a, name) for a in layer.axes] for name in ("stride", "padding", "dilation"))
    sizes = x.meta["val"].shape[2:]
    for size, a in zip(sizes, layer.axes, strict=True):
        extent = a.dilation * (a.kernel - 1)
        if layer.transposed:
            assume((size - 1) * a.stride - 2 * a.padding + extent + 1 > 0)
        else:
            assume(size + 2 * a.padding > extent)
    kernel = [a.kernel for a in layer.axes]
    sides = (inputs, layer.outputs) if layer.transposed else (layer.outputs, inputs)
    weight = g.weight(f"w{len(g.weights)}", numbers(sides[0], sides[1] // layer.groups, *kernel))
    bias = g.weight(f"b{len(g.weights)}", numbers(layer.outputs)) if layer.bias else None
    if layer.transposed:
        extra = [0] * len(kernel)
        return g(TRANSPOSED[len(kernel)], x, weight, bias, stride, padding, extra, layer.groups, dilation)
    return g(PLAIN[len(kernel)], x, weight, bias, stride, padding, dilation, layer.groups)


def layers(graph: Graph) -> list[Any]:
    found = [view(node) for node in graph.calls() if not graph.is_constant(node)]
    return [layer for layer in found if isinstance(layer, (Convolution, Linear))]


def merge(graph: Graph) -> Any:
    """Run the rule without verification, which would hide what it does wrong."""
    record = Driver(graph).run([MergeLinear()])[0]
    assert not record.rejections
    graph.check()
    assert not Driver(graph).run([MergeLinear()])[0].commits
    return record


@given(cases())
@settings(max_examples=min(80, 3 * settings.default.max_examples))
def test_the_result_stays_the_same_and_costs_no_more(case: Case):
    graph, g = build(case)
    before, expected = cost.count(graph), g.run(graph)[0]
    record = merge(graph)
    assert torch.equal(g.run(graph)[0], expected)
    after = cost.count(folded_graph(Result(graph, record, graph)))
    assert len(layers(graph)) == 2 - len(record.commits)
    assert after.flops <= before.flops
    assert after.weight_bytes <= before.weight_bytes
    for batch in (0, 1, 3):
        x = numbers(batch, *g.inputs[0].shape[1:])
        assert torch.equal(graph.to_module()(x)[0], build_again(case, g)(x))


def build_again(case: Case, g: Program) -> Any:
    """The original program on the same weights."""
    twin = Program(dynamic=True)
    x = twin.input(g.inputs[0])
    state = torch.random.get_rng_state()
    node = place(twin, x, case.first, case.inputs)
    if case.mode:
        node = twin(aten.pad.default, node, [case.amount] * (2 * len(case.sizes)), case.mode)
    graph = twin.graph(place(twin, node, case.second, case.first.outputs))
    torch.random.set_rng_state(state)
    graph.weights.update({name: g.weights[name] for name in graph.weights})
    return lambda x: graph.to_module()(x)[0]


@given(st.data())
@settings(max_examples=25)
def test_separable_kernels_without_bias_between_merge_whatever_their_padding(data: st.DataObject):
    """Each of the two pads a dimension that the other one does not: the border is that of the whole kernel."""
    kernels = [data.draw(st.integers(1, 4)) for _ in range(2)]
    steps = [data.draw(st.integers(1, 2)) for _ in range(2)]
    pads = [data.draw(st.integers(0, kernel)) for kernel in kernels]
    rows = Layer((Axis(kernels[0], steps[0], pads[0]), Axis()), 100, 1, False)
    columns = Layer((Axis(), Axis(kernels[1], steps[1], pads[1])), 2, 1, data.draw(st.booleans()))
    sizes = tuple(data.draw(st.integers(4, 8)) for _ in range(2))
    graph, g = build(Case(sizes, 2, rows, columns))
    expected = g.run(graph)[0]
    assert len(merge(graph).commits) == 1
    assert torch.equal(g.run(graph)[0], expected)


@given(cases(), st.integers(0, 3))
def test_an_impulse_finds_its_tap(case: Case, channel: int):
    """A shifted or mirrored kernel shows at once where a single element of the input is not zero."""
    graph, g = build(case)
    original = build_again(case, g)
    if not merge(graph).commits:
        return
    size = math.prod(case.sizes)
    impulses = torch.eye(size, dtype=torch.float64).reshape(size, 1, *case.sizes)
    x = torch.zeros(size, case.inputs, *case.sizes, dtype=torch.float64)
    x[:, channel % case.inputs] = impulses[:, 0]
    assert torch.equal(graph.to_module()(x)[0], original(x))


@given(st.data())
@settings(max_examples=8)
def test_everything_that_a_rule_promises(data: st.DataObject):
    if data.draw(st.booleans()):
        first = data.draw(linears(out_features=16))
        model = nn.Sequential(first.module(), nn.Linear(16, 3, data.draw(st.booleans())).to(first.dtype)).eval()
    else:
        first = data.draw(convolutions(dims=(1, 2), out_channels=24, max_kernel=4, depthwise=False))
        kind = (nn.Conv1d, nn.Conv2d)[first.dims - 1]
        model = nn.Sequential(
            first.module(), kind(24, 2, 1, stride=data.draw(st.integers(1, 2))).to(first.dtype)
        ).eval()
    assert_rule(MergeLinear(), model, first.inputs())
