"""Intervals of values: what is claimed holds for drawn programs, and activations that change nothing go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import Interval, Rational, oo
from torch.fx import Node

from passes.ranges import value_range
from passes.simplify import MergeClamps, RemoveIdleActivation, Simplify
from rewrite.driver import Driver
from tests.passes.pooling import rewritten
from tests.programs import Program, aten, special


def alone(name: str) -> Callable[[Program, Node], Node]:
    return lambda p, x: p(getattr(aten, name).default, x)


UNARY: dict[str, Callable[[Program, Node], Node]] = {
    **{name: alone(name) for name in (
        "relu", "relu6", "sigmoid", "tanh", "hardsigmoid", "log_sigmoid", "exp", "expm1", "erf", "atan", "asinh", "abs",
        "square", "softplus", "hardswish", "silu", "gelu", "mish", "sin", "cos", "sqrt", "neg", "leaky_relu", "elu",
        "celu", "selu",
    )},
    "leaky": lambda p, x: p(aten.leaky_relu.default, x, 0.25),
    "leaky negative": lambda p, x: p(aten.leaky_relu.default, x, -0.25),
    "elu scaled": lambda p, x: p(aten.elu.default, x, 0.5, 1.5, 2.0),
    "hardtanh": lambda p, x: p(aten.hardtanh.default, x, -0.5, 0.75),
    "far": lambda p, x: p(aten.clamp.default, x, -1e4, 1e4),
    "unit": lambda p, x: p(aten.clamp.default, x, 0.0, 1.0),
    "clamp low": lambda p, x: p(aten.clamp_min.default, x, -0.25),
    "clamp high": lambda p, x: p(aten.clamp_max.default, x, 0.5),
    "threshold": lambda p, x: p(aten.threshold.default, x, 0.25, -2.0),
    "softplus early": lambda p, x: p(aten.softplus.default, x, 1.0, -0.5),
    "softplus mirrored": lambda p, x: p(aten.softplus.default, x, -1.0),
    "softmax": lambda p, x: p(aten.softmax.int, x, 1),
    "log softmax": lambda p, x: p(aten.log_softmax.int, x, 2),
    "softmax of one": lambda p, x: p(aten.softmax.int, p(aten.unsqueeze.default, x, 0), 0),
    "twice": lambda p, x: p(aten.mul.Tensor, x, 2.0),
    "minus half": lambda p, x: p(aten.div.Tensor, x, -2.0),
    "nothing": lambda p, x: p(aten.mul.Tensor, x, 0.0),
    "one minus": lambda p, x: p(aten.rsub.Scalar, x, 1.0),
    "difference": lambda p, x: p(aten.sub.Tensor, x, x),
    "double": lambda p, x: p(aten.add.Tensor, x, x, alpha=1.5),
    "average": lambda p, x: p(aten.avg_pool2d.default, x, [2, 2], [1, 1], [1, 1]),
    "average of elements": lambda p, x: p(aten.avg_pool2d.default, x, [2, 2], [1, 1], [1, 1], False, False),
    "average by five": lambda p, x: p(aten.avg_pool2d.default, x, [2, 2], [1, 1], [0, 0], False, True, 5),
    "maximum": lambda p, x: p(aten.max_pool2d.default, x, [2, 2], [1, 1], [1, 1]),
    "maximum with gaps": lambda p, x: p(aten.max_pool2d.default, x, [2, 2], [1, 1], [1, 1], [4, 2]),
    "mean": lambda p, x: p(aten.mean.dim, x, [-1], True),
    "sum": lambda p, x: p(aten.sum.dim_IntList, x, [-2], True),
    "largest": lambda p, x: p(aten.amax.default, x, [1], True),
    "logsumexp": lambda p, x: p(aten.logsumexp.default, x, [1], True),
    "padded": lambda p, x: p(aten.constant_pad_nd.default, x, [1, 0], 0.75),
    "reflected": lambda p, x: p(aten.pad.default, x, [1, 0, 0, 1], "reflect"),
    "copied": lambda p, x: p(aten.clone.default, x),
    "permuted": lambda p, x: p(aten.permute.default, x, [0, 1, 3, 2]),
    "sliced": lambda p, x: p(aten.slice.Tensor, x, 3, 0, 2),
}  # fmt: skip

BINARY: dict[str, Callable[[Program, Node, Node], Node]] = {
    "sum": lambda p, x, y: p(aten.add.Tensor, x, y),
    "difference": lambda p, x, y: p(aten.sub.Tensor, x, y, alpha=2),
    "product": lambda p, x, y: p(aten.mul.Tensor, x, y),
    "larger": lambda p, x, y: p(aten.maximum.default, x, y),
    "smaller": lambda p, x, y: p(aten.minimum.default, x, y),
    "joined": lambda p, x, y: p(aten.cat.default, [x, y], 1),
}


@settings(max_examples=8 * settings().max_examples)
@given(
    st.lists(st.sampled_from(sorted(UNARY)), min_size=1, max_size=4),
    st.lists(st.sampled_from(sorted(UNARY)), min_size=0, max_size=3),
    st.sampled_from([None, *sorted(BINARY)]),
    st.booleans(),
)
def test_every_value_lies_in_its_range(left: list[str], right: list[str], join: str | None, shrink: bool):
    def chain(program: Program, steps: list[str]) -> Node:
        node = program.input(special(2, 3, 4, 4, dtype=torch.float64) * (0.1 if shrink else 1))
        for step in steps:
            if node.meta["val"].dim() != 4 or min(node.meta["val"].shape[-2:]) < 3:
                break
            node = UNARY[step](program, node)
        return node

    program = Program()
    node = chain(program, left)
    if join is not None:
        other = chain(program, right)
        if node.meta["val"].shape != other.meta["val"].shape:
            return
        node = BINARY[join](program, node, other)
    found = value_range(node)
    values = program.values(program.graph(node))[node]
    numbers = values[values.isfinite()]
    slack = 1e-9 * (1 + numbers.abs())
    assert (numbers >= float(found.low) - slack).all(), (found, float(numbers.min()))
    assert (numbers <= float(found.high) + slack).all(), (found, float(numbers.max()))


def of(build: Callable[[Program, Node], Node]) -> Any:
    program = Program()
    return value_range(build(program, program.input(torch.randn(2, 3, 4, 4)))).interval


KNOWN: dict[str, tuple[Callable[[Program, Node], Node], Any]] = {
    "an input": (lambda p, x: x, Interval(-oo, oo)),
    "a half of a rectified": (lambda p, x: UNARY["sigmoid"](p, UNARY["relu"](p, x)), Interval(Rational(1, 2), 1)),
    "a sum of linear steps": (
        lambda p, x: UNARY["hardsigmoid"](p, p(aten.clamp.default, x, -1.0, 1.0)),
        Interval(Rational(1, 3), Rational(2, 3)),
    ),
    "an exponential of zero": (lambda p, x: UNARY["exp"](p, UNARY["nothing"](p, x)), Interval(1, 1)),
    "a tenth": (lambda p, x: p(aten.clamp.default, x, 0.1, 0.1), Interval(*[Rational(*(0.1).as_integer_ratio())] * 2)),
    "counted": (lambda p, x: p(aten.sum.dim_IntList, UNARY["tanh"](p, x), [1, 2]), Interval(-12, 12)),
    "joined alone": (lambda p, x: p(aten.cat.default, [UNARY["relu6"](p, x)], 1), Interval(0, 6)),
    "unknown": (lambda p, x: p(aten.cumsum.default, UNARY["relu"](p, x), 1), Interval(-oo, oo)),
    "whole numbers": (lambda p, x: p(aten.argmax.default, x, 1), Interval(-oo, oo)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_ranges_are_exact_numbers(name: str):
    build, interval = KNOWN[name]
    assert of(build) == interval


def clamps(low: float | None, high: float | None, *names: str) -> Callable[[Program, Node], Node]:
    def build(p: Program, x: Node) -> Node:
        x = p(aten.clamp.default, x, low, high)
        for name in names:
            x = UNARY[name](p, x)
        return x

    return build


IRRATIONAL: dict[str, tuple[tuple[float, float], str, tuple[str, str]]] = {
    # a clamp, a function of it, and digits below and above its ends
    "logistic": ((-2.0, 6.0), "sigmoid", ("0.11920292202211755594", "0.99752737684336522567")),
    "a logistic far out": ((-1e4, 1e4), "sigmoid", ("0", "1")),
    "log of a logistic": ((-3.0, 3.0), "log_sigmoid", ("-3.0485873515737420589", "-0.048587351573742058759")),
    "hyperbolic tangent": ((-1.0, 1000.0), "tanh", ("-0.76159415595576488812", "1")),
    "error function": ((-0.5, 2.0), "erf", ("-0.52049987781304653768", "0.99532226501895273416")),
    "arcus tangent": ((-1.0, 1e9), "atan", ("-0.78539816339744830962", "1.5707963257948966192")),
    "arsinh": ((-1.0, 1e300), "asinh", ("-0.88137358701954302523", "691.46867507877366520")),
    "exponential": ((-1.0, 1.0), "exp", ("0.36787944117144232160", "2.7182818284590452354")),
    "exponential less one": ((-1e-9, 1e-9), "expm1", ("-9.9999999950000000017e-10", "1.0000000005000000002e-9")),
}


@pytest.mark.parametrize("name", IRRATIONAL)
def test_irrational_images_are_rounded_outward(name: str):
    bounds, function, digits = IRRATIONAL[name]
    found = of(clamps(*bounds, function))
    for end, text, sign in zip((found.inf, found.sup), digits, (-1, 1), strict=True):
        assert end.is_Rational
        assert 0 <= (end - Rational(text)) * sign <= abs(Rational(text)) * Rational(1, 10**14) + Rational(1, 10**300)


NESTED: dict[str, tuple[Callable[[Program, Node], Node], Any]] = {
    "an exponential of minus one": (clamps(-1e9, 1e9, "neg", "exp", "neg", "exp"), Interval(0, 1)),
    "an exponential of one": (clamps(None, 1e9, "exp", "exp"), Interval(1, oo)),
    "four exponentials": (clamps(None, 6, "exp", "exp", "exp", "exp"), Interval(0, oo)),
    "an exponential above all floats": (
        clamps(1e4, 2e4, "exp", "log_sigmoid"),
        Interval(-Rational(5e-324), 0),
    ),
    "many squares": (
        lambda p, x: (y := clamps(0.1, 0.7)(p, x), [y := p(aten.mul.Tensor, y, y) for _ in range(7)])[1][-1],
        Interval(0, 1),
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_functions_cost_no_more_than_numbers(name: str):
    build, hull = NESTED[name]
    found = of(build)
    assert all(end.is_Rational or end in (oo, -oo) for end in (found.inf, found.sup))
    assert all(end.is_infinite or end.p.bit_length() + end.q.bit_length() < 10_000 for end in (found.inf, found.sup))
    assert found.is_subset(hull.union(Interval(hull.inf - Rational(1, 10**300), hull.sup)))


def test_a_rounded_number_is_no_range_of_one_number():
    for name in ("exp", "tanh", "erf", "atan", "asinh", "expm1", "sigmoid", "log_sigmoid"):
        found = of(clamps(1.0, 1.0, name))
        assert found.inf < found.sup
    # the same number twice, too long to be kept
    found = of(lambda p, x: (y := clamps(0.1, 0.1)(p, x), [y := p(aten.mul.Tensor, y, y) for _ in range(7)])[1][-1])
    assert found.inf < Rational(*(0.1).as_integer_ratio()) ** 128 < found.sup


@pytest.mark.parametrize(
    ("beta", "threshold", "rectified", "low"),
    [(1.0, 20.0, False, 0), (2.0, -5.0, False, Rational(-5, 2)), (2.0, -5.0, True, 0), (-1.0, 20.0, True, -oo),
     (0.0, 20.0, True, -oo)],
)  # fmt: skip
def test_a_softplus_is_bounded_by_what_its_numbers_say(beta: float, threshold: float, rectified: bool, low: Any):
    found = of(lambda p, x: p(aten.softplus.default, UNARY["relu" if rectified else "copied"](p, x), beta, threshold))
    assert found == Interval(low, oo)


def test_infinite_constants_are_no_numbers():
    for build in (
        lambda p, x: p(aten.mul.Tensor, UNARY["relu"](p, x), math.inf),
        lambda p, x: p(aten.add.Tensor, UNARY["relu"](p, x), math.inf),
        lambda p, x: p(aten.full_like.default, x, math.nan),
        lambda p, x: p(aten.constant_pad_nd.default, UNARY["relu"](p, x), [1, 1], -math.inf),
        lambda p, x: p(aten.threshold.default, UNARY["relu"](p, x), math.inf, 0.0),
    ):
        assert of(build) == Interval(-oo, oo)


# -- activations that change nothing ----------------------------------------------------------------------------------

IDLE: dict[str, tuple[str, ...]] = {
    "relu of a sigmoid": ("sigmoid", "relu"),
    "relu of a relu": ("relu", "relu"),
    "relu of a softmax": ("softmax", "relu"),
    "relu of an average": ("relu", "average", "relu"),
    "relu of a mean": ("exp", "mean", "relu"),
    "absolute value": ("hardsigmoid", "abs"),
    "leaky": ("relu6", "leaky_relu"),
    "elu": ("square", "elu"),
    "celu": ("abs", "celu"),
    "clamp of a tanh": ("tanh", "one minus", "clamp low"),
    "a saturated logistic": ("far", "sigmoid", "unit"),
    "one minus a saturated logistic": ("far", "sigmoid", "one minus", "relu"),
    "a saturated tanh": ("far", "tanh", "one minus", "relu"),
}


@pytest.mark.parametrize("name", IDLE)
def test_an_activation_that_changes_nothing_goes(name: str):
    def build(p: Program, x: Node) -> Node:
        for step in IDLE[name]:
            x = UNARY[step](p, x)
        return p(aten.mul.Tensor, x, 3.0)

    outcome = rewritten(build, RemoveIdleActivation(), special(2, 3, 4, 4))
    assert len(outcome.record.commits) == 1
    assert len(outcome.operators) == len(IDLE[name])
    torch.testing.assert_close(outcome.after, outcome.before, rtol=0, atol=0, equal_nan=True)


BUSY: dict[str, tuple[str, ...]] = {
    "a tanh may be negative": ("tanh", "relu"),
    "a shifted one": ("sigmoid", "one minus", "neg", "relu"),
    "a sigmoid may be more": ("sigmoid", "clamp high"),
    "a softplus that is early the identity": ("softplus early", "relu"),
    "a softplus of a negative number": ("softplus mirrored", "relu"),
    "a scaled elu": ("relu", "elu scaled"),
    "a sum of both signs": ("tanh", "sum", "relu"),
    "minus infinity in a window": ("relu", "maximum with gaps", "relu"),
    "nothing is known": ("permuted", "relu"),
}


@pytest.mark.parametrize("name", BUSY)
def test_an_activation_that_may_change_something_stays(name: str):
    def build(p: Program, x: Node) -> Node:
        for step in BUSY[name]:
            x = UNARY[step](p, x)
        return p(aten.mul.Tensor, x, 3.0)

    assert not rewritten(build, RemoveIdleActivation(), torch.randn(2, 3, 4, 4)).record.commits


def test_what_others_read_of_the_argument_stays():
    def build(p: Program, x: Node) -> Any:
        inner = p(aten.relu.default, x)
        pooled = p(aten.avg_pool2d.default, inner, [2, 2])
        return (
            p(aten.exp.default, p(aten.relu.default, pooled)),
            p(aten.sin.default, inner),
            p(aten.cos.default, pooled),
        )

    outcome = rewritten(build, RemoveIdleActivation(), torch.randn(2, 3, 4, 4))
    assert len(outcome.record.commits) == 1
    assert sorted(outcome.operators) == ["avg_pool2d", "cos", "exp", "relu", "sin"]
    for a, b in zip(outcome.after, outcome.before, strict=True):
        assert torch.equal(a, b)


def test_an_activation_whose_reader_sees_strides_stays():
    """Without it the convolution would read every second column of a wider tensor."""

    def build(p: Program, x: Node, w: Node) -> Node:
        half = p(aten.slice.Tensor, p(aten.sigmoid.default, x), 3, 0, 8, 2)
        return p(aten.conv2d.default, p(aten.relu.default, half), w)

    x, weight = torch.randn(2, 3, 6, 8), torch.randn(4, 3, 1, 1)
    outcome = rewritten(build, RemoveIdleActivation(), x, weights={"w": weight})
    assert outcome.operators == ["sigmoid", "slice", "relu", "conv2d"]
    assert outcome.reasons == ["the copy changes the strides that another operator reads"]


def test_two_results_stay_two_tensors():
    def build(p: Program, x: Node) -> Any:
        inner = p(aten.sigmoid.default, x)
        return inner, p(aten.relu.default, inner)

    outcome = rewritten(build, RemoveIdleActivation(), torch.randn(2, 3, 4, 4))
    assert outcome.reasons == ["the model returns both the copy and the original, which would share memory"]


# -- clamps of clamps -------------------------------------------------------------------------------------------------


def test_a_clamp_of_a_clamp_is_one_clamp_for_all_real_numbers():
    # min and max commute with maps that keep the order, so the order of the five numbers decides, and five values give
    # every order that five numbers can have
    for a, b, c, d, x in itertools.product(range(5), repeat=5):
        if a <= b and c <= d:
            low, high = min(max(a, c), d), min(max(b, c), d)
            assert low <= high
            assert min(max(min(max(x, a), b), c), d) == min(max(x, low), high)


bounds = st.tuples(
    st.sampled_from([-math.inf, -1.0, 0.0, 0.25]), st.sampled_from([-0.5, 0.25, 1.0, math.inf])
).filter(lambda pair: pair[0] <= pair[1] and pair != (-math.inf, math.inf))  # fmt: skip


def clamped(p: Program, x: Node, low: float, high: float) -> Node:
    return p(aten.clamp.default, x, None if math.isinf(low) else low, None if math.isinf(high) else high)


@given(bounds, bounds, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_any_two_clamps_merge(inner: tuple[float, float], outer: tuple[float, float], dtype: torch.dtype):
    program = Program()
    x = program.input(special(3, 9, dtype=dtype))
    graph = program.graph(program(aten.mul.Tensor, clamped(program, clamped(program, x, *inner), *outer), 1.5))
    [before] = program.run(graph.copy())
    Driver(graph).run([MergeClamps()])
    [after] = program.run(graph)
    assert len(graph.calls()) == 2
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_intervals_that_do_not_meet_still_pass_nan_on():
    outcome = rewritten(
        lambda p, x: p(aten.mul.Tensor, clamped(p, clamped(p, x, -math.inf, 0.0), 1.0, 2.0), 3.0), Simplify(),
        special(2, 3, 4, 4),
    )  # fmt: skip
    assert outcome.operators == ["clamp", "mul"]
    assert outcome.after.isnan().sum() == 1
    assert (outcome.after[~outcome.after.isnan()] == 3).all()
