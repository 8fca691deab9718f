"""Reductions in any order and spelling, and pools over windows of every geometry."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes import CommutePooling, HoistPooling, ReductionAlgebra
from rewrite.driver import Driver
from rewrite.testing import ConvSpec, Values, assert_rule, convolutions
from tests.programs import Program, aten, special

examples = settings().max_examples
few = settings(max_examples=examples // 3)

KINDS = {
    "sum": aten.sum.dim_IntList, "mean": aten.mean.dim, "max": aten.amax.default, "min": aten.amin.default,
    "logsumexp": aten.logsumexp.default,
}  # fmt: skip


@st.composite
def dimensions(draw: st.DrawFn, rank: int) -> list[int]:
    """Some dimensions, each once, in any order, counted from either end."""
    chosen = draw(st.permutations(range(rank)))[: draw(st.integers(1, rank))]
    return [dim - rank if draw(st.booleans()) else dim for dim in chosen]


@st.composite
def reduced_twice(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[tuple[list[int], bool]]]:
    """A kind of reduction, a shape, and two reductions of it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    first, kept = draw(dimensions(len(shape))), draw(st.booleans())
    rank = len(shape) if kept else len(shape) - len(first)
    assume(rank > 0)
    return kind, shape, [(first, kept), (draw(dimensions(rank)), draw(st.booleans()))]


@settings(max_examples=3 * examples)
@given(reduced_twice(), st.booleans(), st.booleans())
def test_two_reductions_give_what_they_gave(case: Any, dynamic: bool, extreme: bool):
    kind, shape, steps = case
    program = Program(dynamic)
    x = special(*shape, dtype=torch.float64) if extreme else torch.randn(shape, dtype=torch.float64)
    x = x.clamp(-1e100, 1e100) if kind == "sum" else x  # what overflows inside is rounding
    node = program.input(x)
    for dims, keepdim in steps:
        node = program(KINDS[kind], node, dims, keepdim)
    graph = program.graph(program(aten.mul.Tensor, node, 2.0))
    [before] = program.run(graph.copy())
    Driver(graph).run([ReductionAlgebra()])
    [after] = program.run(graph)
    graph.check()
    assert sum(call.target in KINDS.values() for call in graph.calls()) <= 1
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12 * float(x[x.isfinite()].abs().max()),
                               equal_nan=True)  # fmt: skip


@settings(max_examples=3 * examples)
@given(st.data())
def test_reductions_of_reshaped_and_permuted_values(data: st.DataObject):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4)))
    program = Program(data.draw(st.booleans()))
    node = program.input(torch.randn(shape, dtype=torch.float64))
    for _ in range(data.draw(st.integers(1, 2))):
        rank = node.meta["val"].dim()
        if data.draw(st.booleans()):
            node = program(aten.permute.default, node, list(data.draw(st.permutations(range(rank)))))
        elif rank > 1:
            start = data.draw(st.integers(0, rank - 2))
            node = program(aten.flatten.using_ints, node, start, data.draw(st.integers(start + 1, rank - 1)))
        else:
            node = program(aten.unsqueeze.default, node, data.draw(st.integers(0, rank)))
    kind = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    node = program(kind, node, data.draw(dimensions(node.meta["val"].dim())), data.draw(st.booleans()))
    graph = program.graph(program(aten.mul.Tensor, node, 2.0))
    [before] = program.run(graph.copy())
    Driver(graph).run([HoistPooling()])
    [after] = program.run(graph)
    graph.check()
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


class Twice(nn.Module):
    """A mean of a mean."""

    def __init__(self, dims: tuple[list[int], list[int]], kept: tuple[bool, bool]) -> None:
        super().__init__()
        self.dims, self.kept = dims, kept
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return (2 * x).mean(self.dims[0], keepdim=self.kept[0]).mean(self.dims[1], keepdim=self.kept[1])


@few
@given(st.sampled_from(["contiguous", "channels_last", "sliced"]), st.booleans(), st.booleans(),
       st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.booleans())  # fmt: skip
def test_means_of_means(layout: str, kept: bool, again: bool, dtype: torch.dtype, extreme: bool):
    x = Values((2, 3, 5, 4), dtype, layout, extreme).tensor()
    assert_rule(ReductionAlgebra(), Twice(([3, 1], [-1]), (kept, again)), x, batches=(0, 1, 5))


# -- windows ----------------------------------------------------------------------------------------------------------

ACTIVATIONS = [
    (aten.relu.default,), (aten.relu6.default,), (aten.hardtanh.default, -0.5, 0.75), (aten.clamp.default, -0.25, None),
    (aten.leaky_relu.default, 0.125), (aten.threshold.default, 0.25, -1.0), (aten.leaky_relu.default, -0.125),
    (aten.leaky_relu.default, 0.0), (aten.gelu.default,), (aten.abs.default,), (aten.clamp.default, 0.5, -0.5),
]  # fmt: skip


@settings(max_examples=2 * examples)
@given(st.sampled_from(ACTIVATIONS), st.data())
def test_maxima_have_equal_values(act: Any, data: st.DataObject):
    axes = [[data.draw(st.integers(*bounds)) for _ in range(2)] for bounds in ((1, 4), (1, 3), (0, 2), (1, 3))]
    kernel, stride, padding, dilation = axes
    sizes = [data.draw(st.integers(1, 9)) for _ in range(2)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    assume(all(n + 2 * p >= r for p, r, n in zip(padding, reach, sizes, strict=True)))
    program = Program()
    x = program.input(special(2, 2, *sizes, dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16]))))
    y = program(act[0], x, *act[1:])
    node = program(aten.max_pool2d.default, y, kernel, stride, padding, dilation, data.draw(st.booleans()))
    graph = program.graph(node)
    [before] = program.run(graph.copy())
    Driver(graph).run([CommutePooling()])
    [after] = program.run(graph)
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


class Averaged(nn.Module):
    """A pointwise convolution and average pooling."""

    def __init__(self, layer: nn.Module, options: tuple[Any, ...]) -> None:
        super().__init__()
        self.layer, self.options = layer, options
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.layer(x), *self.options)


@few
@given(
    convolutions(dims=2, padding=False, max_kernel=1, max_stride=1, batches=(2, 1)),
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.booleans(), st.booleans()),
    st.sampled_from([None, None, 3]),
)
def test_averages_of_pointwise_convolutions(spec: ConvSpec, options: Any, divisor: int | None):
    kernel, stride, padding, *flags = options
    assume(2 * padding <= kernel and all(size + 2 * padding >= kernel for size in spec.sizes))
    model = Averaged(spec.module(), (kernel, stride, padding, *flags, divisor))
    assert_rule(CommutePooling(), model, spec.inputs(), batches=(0, 5))
