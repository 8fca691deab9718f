"""Neutral elements and clamps, on both zeros, infinities, NaN and denormals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passes.simplify import MergeClamps, RemoveNeutral, RemoveZeroTerm, Simplify
from tests.passes.rewriting import apply
from tests.programs import Program, aten, names, same_bits, special

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def run(build, step=None, dtype=torch.float32, shape=(3, 7)):
    """What is left of ``build(p, x)`` for a computed ``x``, and its result before and after."""
    program = Program()
    x = program(aten.mul.Tensor, program.input(special(*shape, dtype=dtype)), program.input(torch.ones(7, dtype=dtype)))
    graph = program.graph(build(program, x))
    before = program.run(graph.copy())
    apply(graph, step or Simplify())
    return names(graph)[1:], before, program.run(graph)


EXACT = {
    "x * 1": lambda p, x: p(aten.mul.Tensor, x, 1),
    "x * 1.0": lambda p, x: p(aten.mul.Scalar, x, 1.0),
    "1 * x": lambda p, x: p(aten.mul.Tensor, 1, x),
    "x / 1": lambda p, x: p(aten.div.Tensor, x, 1),
    "x - 0": lambda p, x: p(aten.sub.Tensor, x, 0),
    "x - 0.0": lambda p, x: p(aten.sub.Scalar, x, 0.0),
    "x + -0.0": lambda p, x: p(aten.add.Tensor, x, -0.0),
    "-(-x)": lambda p, x: p(aten.neg.default, p(aten.neg.default, x)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_keeps_every_bit(name, dtype):
    left, before, after = run(EXACT[name], dtype=dtype)
    assert left == []
    assert same_bits(before, after)


ZEROS = {
    "x + 0": lambda p, x: p(aten.add.Tensor, x, 0),
    "0.0 + x": lambda p, x: p(aten.add.Scalar, x, 0.0),
    "x - (-0.0)": lambda p, x: p(aten.sub.Tensor, x, -0.0),
    "x + 3 * 0": lambda p, x: p(aten.add.Tensor, x, 0, alpha=3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ZEROS)
def test_a_zero_term_changes_the_sign_of_zero_alone(name, dtype):
    """So it is not declared bitwise, and a pipeline of bitwise rules leaves it."""
    left, before, after = run(ZEROS[name], dtype=dtype)
    assert left == []
    assert not same_bits(before, after)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0, equal_nan=True)
    assert run(ZEROS[name], RemoveNeutral(), dtype)[0] != []
    assert RemoveZeroTerm.fidelity.value == "elementwise"


def complex_one(p, x):
    return p(aten.abs.default, p(aten.mul.Tensor, p(aten.complex.default, x, x), 1.0))


OTHER = {
    "1 / x": lambda p, x: p(aten.mul.Tensor, p(aten.reciprocal.default, x), 1),
    "1 / x in one operator": lambda p, x: p(aten.div.Tensor, 1, x),
    "2 * x": lambda p, x: p(aten.mul.Tensor, 2, x),
    "0 * x": lambda p, x: p(aten.mul.Tensor, 0, x),
    "x + 0 * x": lambda p, x: p(aten.add.Tensor, x, x, alpha=0),
    "x - 0 * x": lambda p, x: p(aten.sub.Tensor, x, x, alpha=0.0),
    "x * 2": lambda p, x: p(aten.mul.Tensor, x, 2),
    "x * -1": lambda p, x: p(aten.mul.Tensor, x, -1),
    "x + 1": lambda p, x: p(aten.add.Tensor, x, 1),
    "0 - x": lambda p, x: p(aten.rsub.Scalar, x, 0),
    "2 * x + 0": lambda p, x: p(aten.rsub.Scalar, x, 0.0, -2),
    "complex": complex_one,
    "division that rounds": lambda p, x: p(aten.div.Tensor_mode, x, 1, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_arithmetic_stays(name):
    left, before, after = run(OTHER[name])
    assert len(left) == {"1 / x": 1, "complex": 3}.get(name, 1)
    assert same_bits(before, after)


def test_an_operator_that_promotes_or_broadcasts_is_not_neutral():
    program = Program()
    whole = program(aten.mul.Tensor, program.input(torch.arange(4)), 3)
    half = program(aten.sin.default, program.input(special(3, dtype=torch.float16)))
    small = program(aten.sin.default, program.input(special(4)))
    wide = program.input(special(3, 4))
    one = program(aten.full.default, [3, 1], 1.0)
    numbers = program(aten.mul.Tensor, 1, 1)
    graph = program.graph(
        program(aten.mul.Tensor, small, numbers),
        program(aten.mul.Tensor, whole, 1.0),
        program(aten.div.Tensor, whole, 1),
        program(aten.add.Tensor, half, program(aten.full.default, [3], 0.0)),
        program(aten.mul.Tensor, small, one),
        program(aten.mul.Tensor, wide, 1),
    )
    before = program.run(graph.copy())
    apply(graph, Simplify())
    # the input itself is not returned in place of a fresh tensor either
    assert names(graph).count("mul") == 6
    assert names(graph).count("div") == names(graph).count("add") == 1
    assert same_bits(before, program.run(graph))


def test_whole_numbers_times_one_are_the_numbers():
    program = Program()
    whole = program(aten.mul.Tensor, program.input(torch.arange(4)), 3)
    graph = program.graph(program(aten.neg.default, program(aten.mul.Tensor, whole, 1)))
    apply(graph, Simplify())
    assert names(graph) == ["mul", "neg"]


# -- clamps -----------------------------------------------------------------------------------------------------------

RELU = (0.0, math.inf)
bounds = st.tuples(
    st.sampled_from([-math.inf, -1.0, -0.5, 0.0, 0.25]), st.sampled_from([0.25, 1.0, 6.0, math.inf])
)  # fmt: skip


def clamp(p, x, low, high):
    if (low, high) == RELU:
        return p(aten.relu.default, x)
    if math.isinf(low) or math.isinf(high):
        return p(aten.clamp.default, x, None if math.isinf(low) else low, None if math.isinf(high) else high)
    return p(aten.hardtanh.default, x, low, high)


@given(bounds.filter(lambda b: b != (-math.inf, math.inf)), bounds.filter(lambda b: b != (-math.inf, math.inf)))
def test_two_clamps_are_one(inner, outer):
    left, before, after = run(lambda p, x: clamp(p, clamp(p, x, *inner), *outer))
    assert len(left) == 1
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0, equal_nan=True)


NARROWER = {
    "relu of a wider one": (lambda p, x: p(aten.relu.default, p(aten.clamp_min.default, x, -1)), "relu"),
    "lower bound": (lambda p, x: p(aten.clamp_min.default, p(aten.relu.default, x), 0.25), "clamp"),
    "lower bound below zero": (lambda p, x: p(aten.clamp_min.default, p(aten.clamp_min.default, x, -2), -1), "clamp"),
    "lower bound of one": (lambda p, x: p(aten.clamp_min.default, p(aten.relu.default, x), 1), "clamp"),
    "upper bound": (lambda p, x: p(aten.clamp_max.default, p(aten.clamp_max.default, x, 6), 1), "clamp"),
    "upper bound of zero": (lambda p, x: p(aten.clamp_max.default, p(aten.clamp_max.default, x, 6), 0), "clamp"),
    "both bounds": (lambda p, x: p(aten.relu6.default, p(aten.relu.default, x)), "hardtanh"),
    "both bounds from zero": (lambda p, x: p(aten.clamp.default, p(aten.relu.default, x), 0, 2), "hardtanh"),
    "inner": (lambda p, x: p(aten.relu.default, p(aten.relu6.default, x)), "relu6"),
}


@pytest.mark.parametrize("name", NARROWER)
def test_the_narrower_clamp_is_written_as_kernels_know_it(name):
    build, operator = NARROWER[name]
    left, before, after = run(build)
    assert left == [operator]
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0, equal_nan=True)


def test_two_clamps_that_the_model_returns_stay_two():
    program = Program()
    inner = program(aten.relu6.default, program.input(special(3, 7)))
    graph = program.graph(inner, program(aten.relu.default, inner))
    result = apply(graph, Simplify())
    assert names(graph) == ["relu6", "relu"]
    assert set(result.reasons) == {"the model returns both the copy and the original, which would share memory"}


def test_a_clamp_that_is_read_elsewhere_stays_for_its_reader():
    program = Program()
    inner = program(aten.relu.default, program.input(special(3, 7)))
    graph = program.graph(program(aten.hardtanh.default, inner, 0.0, 6.0), program(aten.exp.default, inner))
    result = apply(graph, Simplify())
    assert names(graph) == ["relu", "hardtanh", "exp"]
    assert "relu is also read elsewhere" in result.reasons


def test_a_clamp_of_what_lies_in_its_interval_goes_also_if_that_is_read_elsewhere():
    program = Program()
    inner = program(aten.hardtanh.default, program.input(special(3, 7)), 0.0, 6.0)
    graph = program.graph(
        program(aten.sin.default, program(aten.relu.default, inner)), program(aten.exp.default, inner)
    )  # fmt: skip
    apply(graph, Simplify())
    assert names(graph) == ["hardtanh", "sin", "exp"]


def test_clamps_do_not_claim_the_sign_of_zero():
    assert MergeClamps.fidelity.value == "elementwise"
