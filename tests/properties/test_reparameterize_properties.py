"""Branches drawn over every geometry: merged or not, the sum stays what it is.

Programs are built operator by operator in float64, so the oracle is torch's own operators on the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import Reparameterize
from passes.reparameterize.kernels import Taps, place, union
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.ops import Convolution, value, view
from rewrite.testing import BatchNormSpec, ConvSpec, assert_rule, batch_norms, convolutions
from rewrite.testing.exact import difference_modulo
from rewrite.verify import MatchVerifier
from tests.drawn import COSTLY
from tests.passes.blocks import Branches
from tests.programs import Program

aten = torch.ops.aten
CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
CHANNELS = 4


@dataclass(frozen=True)
class Geometry:
    """One dimension of one branch."""

    kernel: int
    dilation: int
    low: int
    high: int

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1)


@dataclass(frozen=True)
class Spec:
    """One branch: a convolution with its padding and perhaps a norm; ``kind`` may also be 'identity' or 'norm'."""

    kind: str
    dims: tuple[Geometry, ...] = ()
    groups: int = 1
    bias: bool = False
    norm: str = ""
    coefficient: float = 1.0


@dataclass(frozen=True)
class Case:
    """Branches over one input that give equally many outputs."""

    sizes: tuple[int, ...]
    stride: tuple[int, ...]
    mode: str
    outputs: int
    branches: tuple[Spec, ...]


@st.composite
def dimension(draw: st.DrawFn, size: int, stride: int, surplus: int, mode: str) -> Geometry:
    """A kernel for which ``low + high - extent`` is ``surplus``, or as near as gives the same outputs."""
    kernel = draw(st.integers(1, 9 if mode == "zeros" else 4))
    dilation = draw(st.integers(1, 4))
    extent = dilation * (kernel - 1)
    total = extent + surplus + draw(st.integers(0, stride - 1))
    assume(total >= 0)
    assume((size + total - extent - 1) // stride == (size + surplus - 1) // stride)
    low = draw(st.integers(0, total))
    if mode == "reflect":
        assume(max(low, total - low) < size)
    if mode == "circular":
        assume(max(low, total - low) <= size)
    return Geometry(kernel, dilation, low, total - low)


@st.composite
def cases(draw: st.DrawFn, host: bool = False) -> Case:
    """Branches of all kinds; with ``host``, one of them is dense and covers the taps of all others."""
    count = draw(st.sampled_from([1, 2, 2, 3]))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(count))
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]))
    sizes = tuple(draw(st.integers(1, 7)) for _ in range(count))
    surplus = tuple(draw(st.integers(-min(2, size - 1), 2 if size > 2 else 0)) for size in sizes)
    outputs = draw(st.sampled_from([CHANNELS, CHANNELS, 2 * CHANNELS]))
    plain = set(stride) == {1} and set(surplus) == {0} and outputs == CHANNELS
    kinds = ["conv"] * 4 + ["identity", "norm"] * plain
    branches = []
    for _ in range(draw(st.integers(2, 4))):
        kind = draw(st.sampled_from(kinds)) if branches else "conv"
        dims = tuple(draw(dimension(n, s, c, mode)) for n, s, c in zip(sizes, stride, surplus, strict=True))
        branches.append(
            Spec(
                kind,
                dims,
                draw(st.sampled_from([1, 2, CHANNELS])),
                draw(st.booleans()),
                draw(st.sampled_from(["", "affine", "plain"])),
                draw(st.sampled_from([1.0, 1.0, -1.0, 0.5])),
            )
        )
    if host:
        branches.append(_host(branches))
    return Case(sizes, stride, mode, outputs, tuple(branches))


def _host(branches: list[Spec]) -> Spec:
    dims = []
    for d in range(len(branches[0].dims)):
        parts = [spec.dims[d] if spec.kind == "conv" else Geometry(1, 1, 0, 0) for spec in branches]
        low = max(part.low for part in parts)
        last = max(part.extent - part.low for part in parts)
        surplus = max(part.low + part.high - part.extent for part in parts)
        dims.append(Geometry(low + last + 1, 1, low, surplus + last))
    return Spec("conv", tuple(dims), bias=True)


def _norm_parameters(g: Program, draw_from: torch.Generator, channels: int, affine: bool) -> list[Any]:
    """Weight, bias, mean and variance: variances from 1e-7 to 1e3, scales negative and zero."""

    def normal() -> Tensor:
        return torch.randn(channels, generator=draw_from, dtype=torch.float64)

    variance = 10 ** torch.empty(channels, dtype=torch.float64).uniform_(-7, 3, generator=draw_from)
    scale = normal() * (torch.rand(channels, generator=draw_from) < 0.8)
    weights = [_weight(g, scale), _weight(g, normal())] if affine else [None, None]
    return [*weights, _weight(g, normal()), _weight(g, variance)]


def _weight(g: Program, tensor: Tensor) -> Any:
    return g.weight(f"weight{len(g.weights)}", tensor)


def build(case: Case, order: list[int] | None = None, seed: int = 0) -> tuple[Graph, Tensor]:
    """The program of a case, its branches added in the given order, and an input."""
    g, source = Program(), torch.Generator().manual_seed(seed)
    data = torch.randn(2, CHANNELS, *case.sizes, generator=source, dtype=torch.float64)
    x = g.input(data)
    terms = [(_branch(g, case, spec, x, source), spec.coefficient) for spec in case.branches]
    ordered = [terms[i] for i in order] if order is not None else terms
    total = None
    for node, coefficient in ordered:
        if total is None:
            total = node if coefficient == 1 else g(aten.mul.Tensor, node, coefficient)
        elif coefficient == -1:
            total = g(aten.sub.Tensor, total, node)
        else:
            total = g(aten.add.Tensor, total, node, alpha=coefficient)
    return g.graph(total), data


def _branch(g: Program, case: Case, spec: Spec, x: Any, source: torch.Generator) -> Any:
    y = x
    if spec.kind == "conv":
        dims = spec.dims
        shape = [case.outputs, CHANNELS // spec.groups, *(part.kernel for part in dims)]
        weight = _weight(g, torch.randn(shape, generator=source, dtype=torch.float64))
        bias = _weight(g, torch.randn(case.outputs, generator=source, dtype=torch.float64)) if spec.bias else None
        padding = [part.low for part in dims]
        if case.mode != "zeros" or any(part.low != part.high for part in dims):
            flat = [amount for part in reversed(dims) for amount in (part.low, part.high)]
            if any(flat):
                y = g(aten.pad.default, x, flat, "constant" if case.mode == "zeros" else case.mode)
            padding = [0] * len(dims)
        dilation = [part.dilation for part in dims]
        y = g(CONVOLUTIONS[len(dims)], y, weight, bias, list(case.stride), padding, dilation, spec.groups)
    if spec.norm or spec.kind == "norm":
        channels = case.outputs if spec.kind == "conv" else CHANNELS
        parameters = _norm_parameters(g, source, channels, spec.norm != "plain")
        y = g(aten.batch_norm.default, y, *parameters, False, 0.1, 1e-5, True)
    return y


def _run(graph: Graph, data: Tensor) -> Tensor:
    with torch.no_grad():
        return graph.to_module()(data)[0]


def _layers(graph: Graph) -> list[Convolution]:
    views = [view(node) for node in graph.calls() if not graph.is_constant(node)]
    return [found for found in views if isinstance(found, Convolution)]


def _macs(graph: Graph) -> int:
    """Multiply-accumulates of convolutions; other operators count one for each element."""
    total = 0
    for node in graph.calls():
        if not graph.is_constant(node):
            found = view(node)
            taps = value(found.weight)[0].numel() if isinstance(found, Convolution) else 1
            total += value(node).numel() * taps
    return total


def _operators(graph: Graph) -> int:
    return sum(not graph.is_constant(node) for node in graph.calls())


def _rewrite(graph: Graph) -> Graph:
    record = Driver(graph).run([Reparameterize()])[0]
    assert not record.rejections
    graph.check()
    assert not Driver(graph).run([Reparameterize()])[0].commits
    return graph


def _assert_close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() <= 1e-11 * scale


@given(cases())
@COSTLY
def test_the_sum_stays_what_it_is_and_costs_no_more(case: Case):
    graph, data = build(case)
    before = graph.copy()
    expected, macs, operators = _run(graph, data), _macs(graph), _operators(graph)
    _rewrite(graph)
    _assert_close(_run(graph, data), expected)
    assert difference_modulo(before, graph, [data]) == ""
    assert _macs(graph) <= macs
    assert _operators(graph) <= operators


@given(cases(host=True))
def test_with_a_branch_that_covers_all_taps_everything_merges(case: Case):
    graph, data = build(case)
    expected = _run(graph, data)
    _rewrite(graph)
    _assert_close(_run(graph, data), expected)
    assert len(_layers(graph)) == 1
    assert _operators(graph) <= 2


@given(cases(), st.randoms(use_true_random=False))
def test_order_of_branches_does_not_matter(case: Case, random: Any):
    order = list(range(len(case.branches)))
    random.shuffle(order)
    one, data = build(case)
    other, _ = build(case, order)
    _assert_close(_run(_rewrite(one), data), _run(_rewrite(other), data))
    assert sorted(layer.kernel for layer in _layers(one)) == sorted(layer.kernel for layer in _layers(other))


@given(cases(host=True))
def test_every_merge_passes_verification(case: Case):
    graph, _ = build(case)
    record = Driver(graph, MatchVerifier()).run([Reparameterize()])[0]
    assert not record.rejections
    assert record.commits


@given(
    st.lists(
        convolutions(dims=2, same_size=True, modes=["zeros"], in_channels=4, out_channels=4), min_size=2, max_size=3
    ),
    st.lists(batch_norms(), min_size=2, max_size=2),
)
@COSTLY
def test_the_sum_of_drawn_modules(layers: list[ConvSpec], norms: list[BatchNormSpec]):
    """A norm behind the first of them, and one over the input; gradients, dtypes and batches besides the algebra."""
    sizes = tuple(map(max, *(layer.sizes for layer in layers)))
    first, *others = (replace(layer, sizes=sizes, dtype=layers[0].dtype) for layer in layers)
    parts = [nn.Sequential(first.module(), norms[0].after(first).module()), *(layer.module() for layer in others)]
    model = Branches([*parts, norms[1].before(first).module()]).eval()
    assert_rule(Reparameterize(), model, first.inputs(), polynomial=True)


taps = st.builds(
    lambda count, step, low, high: Taps(count, step if count > 1 else 1, low, high),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(0, 12),
)


@given(st.lists(taps, min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 30) | st.none())
def test_the_union_of_taps_contains_them_all(parts: list[Taps], stride: int, size: int | None):
    whole = union(parts, stride, size)
    if size is None:
        assert (whole is None) == (len({part.low + part.high - part.extent for part in parts}) > 1)
    if whole is None:
        return
    offsets = list(whole.offsets)
    for part in parts:
        offset, step = place(part, whole)
        assert [offsets[offset + step * i] for i in range(part.count)] == list(part.offsets)
    assert offsets[0] == min(part.offsets[0] for part in parts)
    assert offsets[-1] == max(part.offsets[-1] for part in parts)
    gaps = [t - offsets[0] for part in parts for t in part.offsets]
    assert whole.step == (math.gcd(*gaps) or 1)
    for n in range(1, 40) if size is None else [size]:
        if parts[0].outputs(n, stride) > 0:
            assert whole.outputs(n, stride) == parts[0].outputs(n, stride)
            assert whole.low >= 0
            assert whole.high >= 0
