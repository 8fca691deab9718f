"""Convolutions by Winograd's algorithm: equal in exact arithmetic, recognised again, refused elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import passes.winograd_convolution as rule
from codegen import native
from passes import FoldConstants, WinogradConvolution
from rewrite import optimize, winograd
from rewrite.graph import Graph
from rewrite.testing import assert_rule
from rewrite.winograd import evaluation, recognised
from tests.drawn import COSTLY
from tests.passes.rewriting import apply, assert_exact, rewrite

ANYWHERE = WinogradConvolution(channels=1)
PIPELINE = "winograd-convolution{channels=1}, simplify, fold-constants"


def recognisable(graph: Graph) -> int:
    """How many convolutions are recognised in a graph; each by the last operator of its chain alone."""
    known = {node: graph.value(node) for node in graph.nodes if graph.is_constant(node)}
    found = [node for node in graph.nodes if recognised(node, known.get) is not None]
    return len([node for node in found if not any(user in found for user in node.users)])


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Conv2d(5, 7, 3, padding=1), (2, 5, 9, 14)),
    (nn.Conv2d(3, 2, 3, bias=False), (2, 3, 6, 10)),
    (nn.Conv2d(4, 4, 3, padding=(0, 2)), (1, 4, 3, 3)),
    (nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 8, 12)),
])  # fmt: skip
def test_every_geometry(layer, shape):
    x = torch.randn(shape)
    result = assert_rule(ANYWHERE, layer.eval(), x, matches=1)
    assert not result.layers
    assert_exact(result, layer, x)
    assert recognisable(apply(result.graph, FoldConstants()).graph) == 1


@given(data=st.data())
@COSTLY
def test_equal_to_the_model(data):
    channels, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    padding = data.draw(st.one_of(st.just("same"), st.tuples(st.integers(0, 2), st.integers(0, 2))))
    size = [data.draw(st.integers(3, 15)) for _ in range(2)]
    layer = nn.Conv2d(channels, outputs, 3, padding=padding, bias=data.draw(st.booleans())).eval()
    x = torch.randn(data.draw(st.integers(1, 3)), channels, *size)
    result = rewrite(layer, ANYWHERE, x)
    assert_exact(result, layer, x)
    with torch.no_grad():
        truth, found = copy.deepcopy(layer).double()(x.double()), result.graph.to_module()(x)
        assert (found - truth).norm() <= 3e-6 * truth.norm()


def test_impulses():
    """Each tap at each place of an image, without rounding."""
    layer = nn.Conv2d(1, 9, 3, padding=1, bias=False).double().eval()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(9, dtype=torch.float64).reshape(9, 1, 3, 3))
        impulses = torch.eye(49, dtype=torch.float64).reshape(49, 1, 7, 7)
        found = rewrite(layer, ANYWHERE, impulses).graph.to_module()(impulses)
        assert (found - layer(impulses)).abs().amax() < 1e-14


@pytest.mark.parametrize("degree", [winograd.TAPS, winograd.OUTPUTS, winograd.POINTS])
def test_a_wrong_transform_is_rejected(monkeypatch, degree):
    """The check of the match finds one transform at points that are a thousandth off."""
    right = rule._evaluation

    def changed(g, conv, asked):
        node = right(g, conv, asked)
        return g(torch.ops.aten.mul.Tensor, node, 1.001) if asked == degree else node

    monkeypatch.setattr(rule, "_evaluation", changed)
    fast = optimize(nn.Conv2d(4, 4, 3).eval(), torch.randn(1, 4, 9, 9), pipeline=PIPELINE, lower="eager")
    assert winograd.PRODUCT not in fast.graph_module.code


@pytest.mark.parametrize(("layer", "shape", "reason"), [
    (nn.Conv2d(4, 4, 3, stride=2), (1, 4, 9, 9), "stride or dilation"),
    (nn.Conv2d(4, 4, 3, dilation=(1, 2)), (1, 4, 9, 9), "stride or dilation"),
    (nn.Conv2d(4, 4, 3, groups=2), (1, 4, 9, 9), "2 groups"),
    (nn.ConvTranspose2d(4, 4, 3), (1, 4, 9, 9), "transposed"),
    (nn.Conv2d(4, 4, 3).bfloat16(), (1, 4, 9, 9), "too few digits"),
    (nn.Conv2d(4, 4, 3), (4, 9, 9), "no batch dimension"),
])  # fmt: skip
def test_refusals(layer, shape, reason):
    x = torch.randn(shape, dtype=next(layer.parameters()).dtype)
    assert_rule(ANYWHERE, layer.eval(), x, refuses=reason)


def test_few_channels_are_refused():
    assert_rule(WinogradConvolution(), nn.Conv2d(4, 32, 3).eval(), torch.randn(1, 4, 9, 9), refuses="fewer than 16")


def test_said_in_the_report_and_left_out_on_demand():
    layer, x = nn.Conv2d(16, 16, 3).eval(), torch.randn(1, 16, 9, 9)
    assert "reach the whole tile" in " ".join(str(optimize(layer, x, pipeline=PIPELINE, lower="eager").report).split())
    plain = optimize(layer, x, pipeline=PIPELINE, lower="eager", numerics="elementwise")
    assert winograd.PRODUCT not in plain.graph_module.code


def test_weights_that_change_are_transformed_again():
    layer, x = nn.Conv2d(16, 24, 3, padding=1).eval(), torch.randn(2, 16, 10, 13)
    fast = optimize(layer, x, pipeline=PIPELINE, lower="eager")
    with torch.no_grad():
        layer.weight.mul_(-2)
        torch.testing.assert_close(fast(x), layer(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fast(x[:1]), layer(x[:1]), rtol=1e-4, atol=1e-4)


def test_nothing_else_is_recognised():
    """A part of what is computed that ends elsewhere, other constants, and what somebody reads in between."""
    graph = rewrite(nn.Conv2d(3, 2, 3).eval(), ANYWHERE, torch.randn(2, 3, 9, 9)).graph
    assert recognisable(graph) == 1
    [product] = [node for node in graph.nodes if node.args[:1] == (winograd.PRODUCT,)]
    graph.output.args = ((*graph.outputs, product),)
    assert recognisable(graph) == 0
    graph.output.args = (graph.outputs[:-1],)
    assert recognisable(graph) == 1
    [back] = [node for node in graph.nodes if node.args[:1] == (winograd.OUTPUT,)]
    left, y, right = back.args[1]
    back.args = (winograd.OUTPUT, [left, y, product.args[1][1]])
    assert recognisable(graph) == 0
    back.args = (winograd.OUTPUT, [left, y, right])
    assert recognisable(graph) == 1


def test_evaluation_is_that_of_polynomials():
    points, coefficients = [-1.5, -0.75, 0.0, 0.75, 1.5], torch.randn(4, dtype=torch.float64)
    values = evaluation(4) @ coefficients
    for point, value in zip(points, values, strict=False):
        assert abs(value - sum(c * point**i for i, c in enumerate(coefficients.tolist()))) < 1e-12
    assert values[-1] == coefficients[-1]


@pytest.mark.skipif(not native.supported(), reason="needs a C++ compiler on Linux and x86")
def test_compiled_with_our_kernel(monkeypatch):
    """TorchInductor calls the kernel for it whether or not anything is measured, with the activation along."""
    layer = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 16, 3), nn.ReLU()).eval()
    x = torch.randn(2, 16, 11, 14)
    counts: list[int] = []
    bind = native.bind
    monkeypatch.setattr(native, "bind", lambda *args, **kwargs: counts.append(n := bind(*args, **kwargs)) or n)
    fast = optimize(layer, x, pipeline=PIPELINE, lower="inductor")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x), rtol=1e-4, atol=1e-5)
        assert fast(x).stride() == layer(x).stride()
    assert counts == [2]
