"""Counts as formulas, against counts at numbers and against torch's counter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from examples.models import load
from rewrite.arithmetic import ceil_div, largest, log2, rounded, symbol
from rewrite.cost import count, written_bytes
from rewrite.flops import Sizes, flops
from rewrite.symbolic import BATCH, Symbols, costs, is_per_sample
from rewrite.trace import capture
from tests.programs import Program, aten

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewrite.graph import Graph


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def graph_of(module: nn.Module, *shape: int) -> Graph:
    return capture(module.eval(), (torch.randn(2, *shape),)).graph


def at(number: Any, **sizes: int) -> int:
    """A count where its symbols have numbers."""
    found = sympy.sympify(number).subs({name: sizes[str(name)] for name in sympy.sympify(number).free_symbols})
    assert found.is_Integer
    return int(found)


def assert_consistent(graph: Graph, batches: tuple[int, ...] = (2, 3, 7)) -> None:
    """Operator by operator, the formula gives what is counted at a number."""
    symbols = Symbols(graph)
    for node in graph.calls():
        formulas = flops(node, symbols), written_bytes(node, symbols)
        for batch in batches:
            sizes = Sizes(graph, batch)
            assert [at(formula, N=batch) for formula in formulas] == [flops(node, sizes), written_bytes(node, sizes)], (
                node
            )


@pytest.mark.parametrize("name", ["replknet", "lsnet", "cct", "deep_rft", "hyena", "hyper_zzw", "sgconv", "eca_resnet"])
def test_every_operator_of_a_network_counts_at_any_batch_as_its_formula_says(name: str):
    model, inputs = load(name)
    graph = capture(model, inputs).graph
    assert_consistent(graph)
    assert at(count(graph, Symbols(graph)).flops, N=1) == count(graph).flops


KINDS = ("conv", "transposed", "max", "average", "norm", "linear", "gelu", "spectrum", "row", "einsum", "softmax")


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with an input of one dimension that it takes."""
    kind, groups = draw(st.sampled_from(KINDS)), draw(st.sampled_from([1, 2]))
    channels, size, kernel = groups * draw(st.integers(1, 3)), draw(st.integers(5, 12)), draw(st.integers(1, 4))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))
    n = draw(st.integers(1, 16))
    made: dict[str, nn.Module] = {
        "conv": nn.Conv1d(channels, 2 * groups, kernel, stride, padding, groups=groups),
        "transposed": nn.ConvTranspose1d(channels, 2 * groups, kernel, stride, groups=groups),
        "max": nn.MaxPool1d(kernel, stride, padding),
        "average": nn.AvgPool1d(kernel, stride, padding),
        "norm": nn.BatchNorm1d(channels),
        "linear": nn.Linear(size, n),
        "gelu": nn.GELU(),
        "spectrum": Calls(lambda x: torch.fft.irfft(torch.fft.rfft(x, n=n), n=size)),
        "row": Calls(lambda x: torch.fft.fft2(x).real),
        "einsum": Calls(lambda x: torch.einsum("bcl,bdl->bcd", x, x)),
        "softmax": Calls(lambda x: (x.transpose(1, 2).reshape(x.shape[0] * size, -1) @ x[0]).softmax(-1)),
    }
    return made[kind], (channels, size)


# a capture takes tenths of a second
@settings(max_examples=3 * settings.default.max_examples)
@given(layers())
def test_every_layer_counts_at_any_batch_as_its_formula_says(case: tuple[nn.Module, tuple[int, ...]]):
    module, shape = case
    assume(all(shape))
    assert_consistent(graph_of(module, *shape))


PRODUCTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(6, 8, (3, 2), (2, 1), (1, 3), (1, 2), groups=2), (6, 9, 7)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, 2, groups=2, output_padding=1), (6, 9, 7)),
    "linear": (nn.Linear(6, 5), (7, 6)),
    "batched": (Calls(lambda x: torch.bmm(x, x.transpose(1, 2))), (7, 6)),
    "einsum": (Calls(lambda x: torch.einsum("blc,bmc->blm", x, x)), (7, 6)),
    "attention": (Calls(lambda x: F.scaled_dot_product_attention(x, x, x[..., :4])), (3, 7, 6)),
    "across the batch": (Calls(lambda x: x.flatten(1) @ x.flatten(1).t()), (3, 5)),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_formulas_of_products_are_what_torch_counts(case: str):
    module, shape = PRODUCTS[case]
    graph = graph_of(module, *shape)
    symbols = Symbols(graph)
    formula = sum(flops(node, symbols) for node in graph.calls())
    for batch in (2, 5, 11):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.randn(batch, *shape))
        assert at(formula, N=batch) == counter.get_total_flops() > 0
    assert is_per_sample(formula) == (case != "across the batch")


def image(height: int, width: int, batch: int, free: tuple[int, ...] = ()) -> Graph:
    """A convolution, a rectifier, a pool, rows transformed and brought back."""
    program = Program()
    x = program.input(torch.randn(batch, 3, height, width), free)
    y = program(aten.conv2d.default, x, program.weight("w", torch.randn(4, 3, 3, 3)), None, [2, 1], [1, 0])
    y = program(aten.relu.default, y)
    y = program(aten.max_pool2d.default, y, [2, 2], [1, 1])
    return program.graph(program(aten.fft_rfft.default, y))


@pytest.mark.parametrize("sizes", [(9, 8, 2), (6, 5, 4), (21, 34, 3)], ids=str)
def test_images_of_any_size_count_as_the_formula_says(sizes: tuple[int, int, int]):
    graph = image(9, 8, 2, free=(0, 2, 3))
    formula, fixed = count(graph, Symbols(graph)), count(image(*sizes))
    numbers = dict(zip("HWN", sizes, strict=True))
    assert {str(name) for name in formula.flops.free_symbols} == set("HWN")
    assert at(formula.flops, **numbers) == fixed.flops
    assert at(formula.activation_bytes, **numbers) == fixed.activation_bytes


def test_sizes_have_their_usual_names():
    program = Program(dynamic=True)
    sequence, other = program.input(torch.randn(2, 3, 5), (2,)), program.input(torch.randn(4, 3))
    graph = program.graph(program(aten.relu.default, sequence), program(aten.relu.default, other))
    first, second = (flops(node, Symbols(graph)) for node in graph.calls())
    assert first == 3 * BATCH * symbol("L")
    assert second == 3 * symbol(str(other.meta["val"].shape[0]))


def test_what_is_proportional_to_the_batch():
    assert is_per_sample(0)
    assert is_per_sample(12 * BATCH)
    assert is_per_sample(3 * (BATCH + 1) - 3)
    assert is_per_sample(sympy.Mul(3, BATCH + 4, evaluate=False) - 12)
    for number in (12, 12 * BATCH + 3, BATCH**2, 3 * BATCH * symbol("H"), sympy.Max(3 * BATCH, 100)):
        assert not is_per_sample(number)


@pytest.mark.parametrize("case", PRODUCTS)
def test_nothing_that_is_asked_of_sizes_reaches_the_graph(case: str):
    module, shape = PRODUCTS[case]
    graph = graph_of(module, *shape)
    shapes = graph.fake_mode.shape_env
    before = len(shapes.guards), dict(shapes.replacements)
    count(graph, Symbols(graph))
    assert (len(shapes.guards), dict(shapes.replacements)) == before


def test_both_sides_of_a_run():
    before, after = graph_of(nn.Linear(3, 4), 3), graph_of(nn.ReLU(), 3)
    found = costs(before, after)
    assert (found.before.flops, found.after.flops) == (24 * BATCH, 3 * BATCH)
    assert found.before.parameters == 16


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 30), st.integers(1, 9))
def test_arithmetic_is_the_same_for_numbers_and_for_symbols(factors: list[int], n: int, part: int):
    numbers = [factor * BATCH if i % 2 else factor for i, factor in enumerate(factors)]
    assert at(largest(*numbers), N=n) == max(at(number, N=n) for number in numbers)
    assert at(largest(*factors, BATCH - 5), N=n) == max(*factors, n - 5)
    assert at(ceil_div(BATCH + 3, part), N=n) == ceil_div(n + 3, part) == math.ceil((n + 3) / part)
    assert at(rounded(5 * BATCH * log2(BATCH) / 2), N=n) == rounded(5 * n * log2(n) / 2)
    assert rounded(2.5) == at(rounded(5 * BATCH / 2), N=1) == 3
