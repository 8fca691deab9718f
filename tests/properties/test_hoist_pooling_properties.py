"""Pooling before layers of every geometry."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes import HoistPooling, HoistSharedPooling
from passes.hoist_pooling.extent import Extent, plain, transposed
from rewrite.driver import Driver
from rewrite.testing import ConvSpec, LinearSpec, assert_rule, convolutions, linears
from tests.programs import Program, aten

examples = settings().max_examples
few = settings(max_examples=examples // 3)


class Pooled(nn.Module):
    """A layer and a reduction of what it gives."""

    def __init__(self, layer: nn.Module, kind: str, dims: tuple[int, ...], keepdim: bool, shared: bool = False) -> None:
        super().__init__()
        self.layer, self.kind, self.dims, self.keepdim, self.shared = layer, kind, dims, keepdim, shared
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        pooled = getattr(y, self.kind)(self.dims, keepdim=self.keepdim)
        return (pooled, y) if self.shared else pooled


def reductions(rank: int, spatial_only: bool = False) -> st.SearchStrategy[tuple[str, tuple[int, ...], bool]]:
    """A kind, dimensions in any order and spelling, and whether they are kept."""
    first = 2 if spatial_only else 1
    dims = st.lists(st.integers(first, rank - 1).flatmap(lambda d: st.sampled_from([d, d - rank])), min_size=1)
    unlike = dims.map(lambda chosen: tuple({d % rank: d for d in chosen}.values()))
    return st.tuples(st.sampled_from(["mean", "sum"]), unlike, st.booleans())


@few
@given(convolutions(batches=(2, 1), max_kernel=5), st.data())
def test_convolutions(spec: ConvSpec, data: st.DataObject):
    kind, dims, keepdim = data.draw(reductions(spec.dims + 2))
    assert_rule(HoistPooling(), Pooled(spec.module(), kind, dims, keepdim), spec.inputs(), batches=(0, 5))


@few
@given(convolutions(transposed=True, batches=(2, 1), max_kernel=5), st.data())
def test_transposed_convolutions(spec: ConvSpec, data: st.DataObject):
    kind, dims, keepdim = data.draw(reductions(spec.dims + 2))
    assert_rule(HoistPooling(), Pooled(spec.module(), kind, dims, keepdim), spec.inputs(), batches=(0, 5))


@few
@given(linears(dims=(1, 2)), st.data())
def test_linear_layers(spec: LinearSpec, data: st.DataObject):
    kind, dims, keepdim = data.draw(reductions(len(spec.input_shape)))
    assert_rule(HoistPooling(), Pooled(spec.module(), kind, dims, keepdim), spec.inputs(), batches=(0, 5))


@few
@given(convolutions(dims=(1, 2), batches=(2, 1), max_kernel=5), st.data())
def test_gates_that_are_known_early(spec: ConvSpec, data: st.DataObject):
    kind, dims, keepdim = data.draw(reductions(spec.dims + 2, spatial_only=True))
    model = Pooled(spec.module(), kind, dims, keepdim, shared=True)
    assert_rule(HoistSharedPooling(), model, spec.inputs(), batches=(0, 5))


# -- many geometries, operator by operator ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Axis:
    """One dimension of a convolution."""

    size: int
    taps: int
    stride: int
    dilation: int
    padding: int

    @property
    def reach(self) -> int:
        return self.dilation * (self.taps - 1)


axes = st.builds(
    Axis, st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4)
).filter(lambda a: a.size + 2 * a.padding > a.reach)  # fmt: skip


@settings(max_examples=2 * examples)
@given(axes, axes, st.sampled_from([(1, 3, 2), (2, 2, 1), (4, 1, 1)]), st.booleans(), st.booleans())
def test_two_dimensions_agree_with_the_layer_and_its_pool(a: Axis, b: Axis, channels: Any, bias: bool, total: bool):
    groups, inputs, outputs = channels
    program = Program(dynamic=True)
    x = program.input(torch.randn(3, groups * inputs, a.size, b.size, dtype=torch.float64))
    weight = program.weight("w", torch.randn(groups * outputs, inputs, a.taps, b.taps, dtype=torch.float64))
    shift = program.weight("b", torch.randn(groups * outputs, dtype=torch.float64)) if bias else None
    options = [[getattr(axis, name) for axis in (a, b)] for name in ("stride", "padding", "dilation")]
    y = program(aten.conv2d.default, x, weight, shift, *options, groups)
    graph = program.graph(program((aten.sum.dim_IntList if total else aten.mean.dim), y, [3, 2]))
    Driver(graph).run([HoistPooling()])
    given_, w = program.inputs[0], program.weights["w"]
    reference = F.conv2d(given_, w, program.weights.get("b"), *options, groups)
    reference = reference.sum((2, 3)) if total else reference.mean((2, 3))
    size = F.conv2d(given_.abs(), w.abs(), None, *options, groups).sum((2, 3)) + 10 * a.size * b.size
    [found] = program.run(graph)
    assert ((found - reference).abs() <= 1e-13 * size).all()


@settings(max_examples=2 * examples)
@given(axes, st.booleans())
def test_what_is_not_finite_stays_so_and_nothing_else_becomes_it(axis: Axis, flips: bool):
    if flips and (axis.size - 1) * axis.stride - 2 * axis.padding + axis.reach + 1 <= 0:
        return
    program = Program()
    x = program.input(torch.randn(2, 2, axis.size, dtype=torch.float64))
    weight = program.weight("w", torch.randn(2, 2, axis.taps, dtype=torch.float64))
    target = aten.conv_transpose1d.default if flips else aten.conv1d.default
    rest = ([0], 1, [axis.dilation]) if flips else ([axis.dilation],)
    y = program(target, x, weight, None, [axis.stride], [axis.padding], *rest)
    graph = program.graph(program(aten.mean.dim, y, [2]))
    model = graph.copy()
    Driver(graph).run([HoistPooling()])
    for place in range(axis.size):
        given_ = program.inputs[0].clone()
        given_[0, 0, place], given_[1, 1, place] = float("inf"), float("nan")
        [before], [after] = program.run(model, given_), program.run(graph, given_)
        assert torch.equal(torch.isfinite(before), torch.isfinite(after))


def coefficients(geometry: Axis | Extent, size: int, outputs: int, flips: bool) -> list[set[tuple[int, int]]]:
    """For each position of the input the pairs of output and tap that meet it."""
    met: list[set[tuple[int, int]]] = [set() for _ in range(size)]
    for u, i in itertools.product(range(size if flips else outputs), range(geometry.taps)):
        place = geometry.stride * u + geometry.dilation * i - geometry.padding
        if flips and 0 <= place < outputs:
            met[u].add((place, i))
        elif not flips and 0 <= place < size:
            met[place].add((u, i))
    return met


@settings(max_examples=10 * examples)
@given(axes, st.booleans(), st.integers(0, 2))
def test_runs_hold_positions_that_the_same_taps_meet(axis: Axis, flips: bool, more: int):
    if flips:
        outputs = (axis.size - 1) * axis.stride - 2 * axis.padding + axis.reach + 1 + more
    else:
        outputs = (axis.size + 2 * axis.padding - axis.reach - 1) // axis.stride + 1
    if outputs <= 0:
        return
    make = transposed if flips else plain
    extent = make(axis.size, axis.taps, axis.stride, axis.dilation, axis.padding, outputs)
    met = coefficients(axis, axis.size, outputs, flips)
    if extent is None:
        assert not all(met)
        return
    reduced = coefficients(extent, extent.positions, extent.reduced_outputs, flips)
    taken = range(extent.start, axis.size, extent.step)[: extent.read]
    assert {place for place, pairs in enumerate(met) if pairs} == set(taken)
    for index, place in enumerate(taken):
        end = extent.low + extent.period * extent.repeats
        if extent.low <= index < end:
            run = extent.low + (index - extent.low) % extent.period
        else:
            run = index if index < extent.low else index - end + extent.low + extent.period
        assert sorted(i for _, i in reduced[run]) == sorted(i for _, i in met[place])
