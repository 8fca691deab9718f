"""Magnitudes against closed forms, and as a bound on the rounding of whole fragments."""

from __future__ import annotations

import operator

import pytest
import torch

from rewrite.verify.magnitude import Magnitudes, channel_max
from tests.verify.fragments import environment, whole
from tests.verify.program import Program

aten = torch.ops.aten


def magnitude(graph, *inputs, dtype=torch.float64, spread=False):
    """The magnitude of the only output, the guess flag and the value, in float64."""
    fragment = whole(graph)
    given = iter(inputs)
    values = {
        node: graph.weights[node.target].double() if node.op == "get_attr" else next(given).double()
        for node in fragment.inputs
    }
    env = environment(fragment, values)
    found = Magnitudes(fragment, env, dtype, spread)
    return found.outputs[0], found.guessed, env[fragment.outputs[0]]


def test_a_convolution_and_a_norm_on_absolute_values():
    p = Program()
    x = torch.randn(2, 3, 7, 8)
    w, b, gamma, beta, mean = (torch.randn(shape) for shape in [(4, 3, 3, 3), (4,), (4,), (4,), (4,)])
    var = torch.rand(4) + 0.5
    y = p(aten.conv2d.default, p.input(x), p.weight(w), p.weight(b), [2, 2], [1, 1])
    held = [p.weight(value) for value in (gamma, beta, mean, var)]
    norm = p(aten._native_batch_norm_legit_no_training.default, y, *held, 0.1, 1e-5)
    found, guessed, value = magnitude(p.graph(p(operator.getitem, norm, 0)), x)
    x, w, b, gamma, beta, mean, var = (t.double().abs() for t in (x, w, b, gamma, beta, mean, var))
    scale = gamma / (var + 1e-5).sqrt()
    expected = torch.conv2d(x, w, b, 2, 1) * scale[:, None, None] + (mean * scale + beta)[:, None, None]
    torch.testing.assert_close(found, expected)
    assert not guessed
    assert (found >= value.abs()).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_whose_errors_spread_is_as_large_everywhere_as_anywhere(groups: int):
    p = Program()
    x, w, b = torch.randn(2, 4, 7, 8), torch.randn(6, 4 // groups, 3, 2), torch.randn(6)
    y = p(aten.conv2d.default, p.input(x), p.weight(w), p.weight(b), [3, 2], [1, 4], [2, 1], groups)
    graph = p.graph(y)
    found, guessed, value = magnitude(graph, x, spread=True)
    alone, _, _ = magnitude(graph, x)
    assert not guessed
    assert found.shape == value.shape
    assert (found >= alone * (1 - 1e-12)).all()
    norms = x.double().norm(dim=(2, 3)).repeat_interleave(6, 0).reshape(2, 6, 4)
    per_group = 6 // groups
    for row, out in ((0, 0), (1, 5)):
        start = out // per_group * (4 // groups)
        expected = (norms[row, 0, start : start + 4 // groups] * w[out].double().norm(dim=(1, 2))).sum() + b[out].abs()
        torch.testing.assert_close(found[row, out], expected.expand(found.shape[2:]))


def test_a_cancelling_sum_is_as_large_as_its_terms():
    p = Program()
    x, y = p.input(torch.ones(2, 3)), p.input(torch.ones(2, 3))
    found, _, value = magnitude(p.graph(p(aten.sub.Tensor, x, y, alpha=3)), torch.full((2, 3), 3.0), torch.ones(2, 3))
    assert torch.equal(value, torch.zeros(2, 3).double())
    assert torch.equal(found, torch.full((2, 3), 6.0).double())


def test_an_activation_that_cuts_off_still_passes_errors_on():
    p = Program()
    x = p.input(torch.ones(2, 3))
    found, _, value = magnitude(p.graph(p(aten.relu.default, x)), torch.full((2, 3), -2.0))
    assert (value == 0).all()
    assert (found == 2).all()


def test_an_unknown_operator_is_guessed_from_its_channels():
    p = Program()
    x = p.input(torch.ones(2, 3, 4))
    values = torch.randn(2, 3, 4)
    found, guessed, value = magnitude(p.graph(p(aten.fft_fftshift.default, x)), values)
    assert guessed
    assert torch.equal(found, channel_max(value.abs()))


UNARY = [
    aten.relu, aten.sigmoid, aten.tanh, aten.gelu, aten.silu, aten.hardswish, aten.hardsigmoid, aten.softplus,
    aten.mish, aten.erf, aten.sin, aten.cos, aten.selu, aten.elu, aten.leaky_relu, aten.hardtanh, aten.exp, aten.square,
    aten.abs, aten.expm1, aten.atan, aten.log_sigmoid,
]  # fmt: skip
POSITIVE = [aten.sqrt, aten.rsqrt, aten.log, aten.log1p, aten.reciprocal]


@pytest.mark.parametrize("packet", UNARY + POSITIVE, ids=str)
def test_an_error_of_the_input_grows_no_more_than_the_magnitude(packet):
    p = Program()
    graph = p.graph(p(packet.default, p.input(torch.ones(2, 300))))
    x = torch.linspace(0.1, 6, 600) if packet in POSITIVE else torch.linspace(-6, 6, 600)
    x = x.reshape(2, 300).double()
    found, guessed, value = magnitude(graph, x)
    assert not guessed
    for step in (1e-6, -1e-6):
        moved = (packet.default(x * (1 + step)) - value).abs()
        assert (moved <= 1e-6 * 1.001 * found + 1e-15).all()


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.softmax.int, (1,)),
        (aten.log_softmax.int, (1,)),
        (aten.layer_norm.default, ([40],)),
        (aten.glu.default, (1,)),
        (aten.pow.Tensor_Scalar, (3,)),
    ],
    ids=str,
)
def test_errors_of_whole_rows_grow_no_more_than_the_magnitude(target, args):
    p = Program()
    graph = p.graph(p(target, p.input(torch.ones(2, 40)), *args))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, generator=generator).double() * 3 + 5
    found, guessed, value = magnitude(graph, x)
    assert not guessed
    for _ in range(20):
        moved = x * (1 + 1e-6 * torch.empty_like(x).uniform_(-1, 1, generator=generator))
        change = (target(moved, *args) - value).abs()
        assert (change <= 1e-6 * 1.001 * found).all()


def test_values_that_are_not_finite_have_no_magnitude():
    p = Program()
    x = p.input(torch.ones(2, 3))
    found, _, _ = magnitude(p.graph(p(aten.add.Tensor, x, x)), torch.tensor([[1.0, torch.inf, torch.nan]] * 2))
    assert torch.equal(found, torch.tensor([[2.0, 0, 0]] * 2).double())
