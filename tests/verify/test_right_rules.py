"""A right rule is never rejected: folds of batch norms in every geometry, and others whose rounding is unusual."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewrite.driver import Driver
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Rule
from rewrite.verify import MatchVerifier
from tests.verify.program import Program
from tests.verify.rules import FoldNorm, replacing

aten = torch.ops.aten


@st.composite
def folds(draw):
    """A convolution and a batch norm: dimensions, geometry, dtype, and statistics from tame to nearly singular."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    kernel = [draw(st.integers(1, 5 if dims < 3 else 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 3)) for _ in range(dims)]
    padding = [draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [n + draw(st.integers(0, 20 if dims < 3 else 4)) for n in least]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    batch = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    exponent = draw(st.integers(-4, 3))

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    p = Program()
    x = p.input(torch.randn(2, inputs, *size).to(dtype), batch=batch)
    w = p.weight(normal(outputs, inputs // groups, *kernel))
    bias = p.weight(normal(outputs)) if draw(st.booleans()) else None
    conv = getattr(aten, f"conv{dims}d").default
    y = p(conv, x, w, bias, stride, padding, dilation, groups)
    variance = torch.rand(outputs, generator=generator, dtype=torch.float64) * 10.0**exponent
    mean, var = p.weight(normal(outputs, scale=3.0)), p.weight(variance.to(dtype))
    gamma, beta = (p.weight(normal(outputs)), p.weight(normal(outputs))) if draw(st.booleans()) else (None, None)
    norm = p(aten._native_batch_norm_legit_no_training.default, y, gamma, beta, mean, var, 0.1, 1e-5)
    return p.graph(p(operator.getitem, norm, 0))


@given(folds())
def test_a_folded_norm_is_accepted(graph):
    (record,) = Driver(graph, MatchVerifier()).run([FoldNorm()])
    assert not record.rejections
    (commit,) = record.commits
    # far from the bound, so that no draw is ever near it
    assert commit.verdict.error < 0.5


def one_operator(target, *shapes, weights=(), args=(), kwargs=None):
    """A program of one operator on inputs and weights of the given shapes."""
    p = Program()
    inputs = [p.input(torch.randn(shape)) for shape in shapes]
    held = [p.weight(torch.randn(shape)) for shape in weights]
    return p.graph(p(target, *inputs, *held, *args, **(kwargs or {})))


def normalised(target, shape, setting, channels):
    """A program of one norm, with parameters of a given number of channels."""
    p = Program()
    x, weight, bias = p.input(torch.randn(shape)), p.weight(torch.randn(channels)), p.weight(torch.randn(channels))
    return p.graph(p(target, x, setting, weight, bias, 1e-5))


def logistic(g, node, x):
    return g(aten.mul.Tensor, g(aten.add.Tensor, g(aten.tanh.default, g(aten.mul.Tensor, x, 0.5)), 1.0), 0.5)


def shifted_softmax(g, node, x, dim):
    return g(aten.softmax.int, g(aten.sub.Tensor, x, g(aten.mean.dim, x, [dim], True)), dim)


def as_convolution(g, node, x, w, b):
    kernel = g(aten.reshape.default, w, [*w.meta["val"].shape, 1, 1])
    channels_first = g(aten.permute.default, x, [0, 3, 1, 2])
    return g(aten.permute.default, g(aten.conv2d.default, channels_first, kernel, b), [0, 2, 3, 1])


def as_linear(g, node, x, w, b):
    matrix = g(aten.reshape.default, w, list(w.meta["val"].shape[:2]))
    channels_last = g(aten.permute.default, x, [0, 2, 3, 1])
    return g(aten.permute.default, g(aten.linear.default, channels_last, matrix, b), [0, 3, 1, 2])


def pool_as_convolution(g, node, x, kernel, stride, padding):
    taps = g(aten.full.default, [4, 1, *kernel], 1 / 9, dtype=torch.float32)
    return g(aten.conv2d.default, x, taps, None, stride, padding, [1, 1], 4)


def without_affine(g, node, x, shape, weight, bias, eps):
    normed = g(aten.layer_norm.default, x, shape, None, None, eps)
    return g(aten.add.Tensor, g(aten.mul.Tensor, normed, weight), bias)


def by_moments(g, node, x, groups, weight, bias, eps):
    rows = g(aten.reshape.default, x, [g(aten.sym_size.int, x, 0), groups, -1])
    mean = g(aten.mean.dim, rows, [2], True)
    centred = g(aten.sub.Tensor, rows, mean)
    variance = g(aten.mean.dim, g(aten.mul.Tensor, centred, centred), [2], True)
    normed = g(aten.mul.Tensor, centred, g(aten.rsqrt.default, g(aten.add.Tensor, variance, eps)))
    normed = g(aten.reshape.default, normed, [g(aten.sym_size.int, x, 0), 6, 9, 11])
    scaled = g(aten.mul.Tensor, normed, g(aten.reshape.default, weight, [6, 1, 1]))
    return g(aten.add.Tensor, scaled, g(aten.reshape.default, bias, [6, 1, 1]))


def reversed_sum(g, node, x, dims):
    return g(aten.sum.dim_IntList, g(aten.flip.default, x, dims), dims)


RIGHT = {
    "logistic": (one_operator(aten.sigmoid.default, (2, 4, 5, 7)), logistic),
    "softmax": (one_operator(aten.softmax.int, (2, 6, 40), args=(2,)), shifted_softmax),
    "as convolution": (one_operator(aten.linear.default, (2, 9, 7, 30), weights=[(8, 30), (8,)]), as_convolution),
    "as linear": (one_operator(aten.conv2d.default, (2, 30, 9, 7), weights=[(8, 30, 1, 1), (8,)]), as_linear),
    "pool": (one_operator(aten.avg_pool2d.default, (2, 4, 9, 7), args=([3, 3], [2, 2], [1, 1])), pool_as_convolution),
    "layer norm": (normalised(aten.layer_norm.default, (2, 5, 16), [16], 16), without_affine),
    "group norm": (normalised(aten.group_norm.default, (2, 6, 9, 11), 2, 6), by_moments),
    "sum": (one_operator(aten.sum.dim_IntList, (2, 3, 50, 41), args=([2, 3],)), reversed_sum),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_another_way_to_compute_the_same_is_accepted(kind):
    graph, build = RIGHT[kind]
    target = graph.calls()[-1].target
    (record,) = Driver(graph, MatchVerifier()).run([replacing(target, build)])
    assert not record.rejections
    assert record.commits[0].verdict.error < 0.5


def through_fourier_space(g, node, x, w, bias, stride, padding, *rest):
    length, taps = 64, 33
    spectrum = g(aten.mul.Tensor, g(aten.fft_rfft.default, x, length + taps - 1, -1),
                 g(aten.fft_rfft.default, g(aten.reshape.default, g(aten.flip.default, w, [2]), [3, taps]),
                   length + taps - 1, -1))  # fmt: skip
    whole = g(aten.fft_irfft.default, spectrum, length + taps - 1, -1)
    return g(aten.slice.Tensor, whole, 2, padding[0], padding[0] + length)


@pytest.mark.parametrize("fidelity", [Fidelity.NORMWISE, Fidelity.ELEMENTWISE])
def test_an_fft_is_equal_in_norm_but_not_in_each_element(fidelity):
    graph = one_operator(aten.conv1d.default, (2, 3, 64), weights=[(3, 1, 33)], args=(None, [1], [16], [1], 3))
    rule = replacing(aten.conv1d.default, through_fourier_space, fidelity)
    (record,) = Driver(graph, MatchVerifier()).run([rule])
    assert bool(record.commits) == (fidelity is Fidelity.NORMWISE)


@dataclass(frozen=True)
class MergeSiblings(Rule):
    """Two convolutions of one input become one: a match with two outputs."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        found = [node for node in dirty if node.target is aten.conv2d.default and origin(node) is None]
        for first in found:
            for second in first.args[0].users:
                if second.target is aten.conv2d.default and origin(second) is None and second > first:
                    yield Match(self, (first, second), (first, second))

    def rewrite(self, match, g):
        (x, w, b), (_, v, c) = (node.args[:3] for node in match.nodes)
        both = g(aten.conv2d.default, x, g(aten.cat.default, [w, v]), g(aten.cat.default, [b, c]))
        return [g(aten.slice.Tensor, both, 1, 0, 4), g(aten.slice.Tensor, both, 1, 4, 10)]


def test_a_match_of_several_outputs_is_accepted():
    p = Program()
    x = p.input(torch.randn(2, 3, 8, 9))
    w, b, v, c = (p.weight(torch.randn(shape)) for shape in [(4, 3, 3, 3), (4,), (6, 3, 3, 3), (6,)])
    first, second = p(aten.conv2d.default, x, w, b), p(aten.conv2d.default, x, v, c)
    graph = p.graph(p(aten.relu.default, first), p(aten.sigmoid.default, second))
    (record,) = Driver(graph, MatchVerifier()).run([MergeSiblings()])
    assert len(record.commits) == 1


@dataclass(frozen=True)
class EmbedFirst(Rule):
    """A linear layer of an embedding is an embedding of the layer's table."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        for node in dirty:
            if node.target is aten.linear.default and node.args[0].target is aten.embedding.default:
                yield Match(self, (node.args[0], node), (node,))

    def rewrite(self, match, g):
        embedding, linear = match.nodes
        return g(aten.embedding.default, g(aten.linear.default, embedding.args[0], *linear.args[1:]), embedding.args[1])


@pytest.mark.parametrize("constant", [True, False])
def test_indices_stay_inside_what_they_index(constant):
    p = Program()
    rows = torch.randint(0, 7, (2, 5))
    indices = p.weight(rows) if constant else p.input(rows)
    table, w, b = (p.weight(torch.randn(shape)) for shape in [(7, 6), (4, 6), (4,)])
    x = p.input(torch.randn(2, 5, 4))
    y = p(aten.linear.default, p(aten.embedding.default, table, indices), w, b)
    graph = p.graph(p(aten.add.Tensor, x, y))
    (record,) = Driver(graph, MatchVerifier()).run([EmbedFirst()])
    assert len(record.commits) == 1
    assert record.commits[0].verdict.error < 0.5


@pytest.mark.parametrize("fidelity", [Fidelity.BITWISE, Fidelity.ELEMENTWISE])
def test_weights_that_are_rounded_on_purpose_are_folded_as_they_are(fidelity):
    p = Program()
    x, w = p.input(torch.randn(2, 5)), p.weight(torch.randn(40, 5))
    scaled = p(aten.mul.Tensor, w, 2.5 / 3)
    quantized = p(aten.div.Tensor, p(aten.round.default, scaled), 3.0)
    graph = p.graph(p(aten.linear.default, x, quantized))
    # exactly between two integers in float32, and not in float64
    graph.weights["weight0"][:] = torch.tensor(0.6)

    class Fold(Rule, abstract=True):
        def find(self, graph, dirty):
            nodes = (scaled, quantized.args[0], quantized)
            return iter([Match(self, nodes, (quantized,))] if quantized in dirty and quantized.users else [])

        def rewrite(self, match, g):
            return g.fold(quantized, "folded")

    rule = dataclass(frozen=True)(type("Fold", (Fold,), {"fidelity": fidelity}))()
    (record,) = Driver(graph, MatchVerifier()).run([rule])
    assert len(record.commits) == 1


@dataclass(frozen=True)
class ScaleTwice(Rule):
    """A factor before an oscillating function, in two steps."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        for node in dirty:
            if node.target is aten.special_bessel_j0.default and origin(node) is None:
                yield Match(self, (node.args[0], node), (node,))

    def rewrite(self, match, g):
        x, factor = match.nodes[0].args
        scaled = g(aten.mul.Tensor, g(aten.mul.Tensor, x, 7.0), factor / 7)
        return g(aten.special_bessel_j0.default, scaled)


def test_an_unknown_operator_may_enlarge_errors():
    p = Program()
    x = p.input(torch.randn(2, 3, 20, 20, dtype=torch.float64))
    graph = p.graph(p(aten.special_bessel_j0.default, p(aten.mul.Tensor, x, 1e5)))
    (record,) = Driver(graph, MatchVerifier()).run([ScaleTwice()])
    assert len(record.commits) == 1


def test_bits_of_a_folded_weight_are_those_of_its_own_dtype():
    p = Program()
    x, w, b = p.input(torch.randn(2, 5)), p.weight(torch.randn(4, 5)), p.weight(torch.randn(4))
    thirds = p(aten.mul.Tensor, w, 1 / 3)
    layer = p(aten.linear.default, x, thirds, b)
    graph = p.graph(layer)

    class FoldInside(Rule, abstract=True):
        def find(self, graph, dirty):
            return iter([Match(self, (thirds, layer), (layer,))] if layer in dirty and layer.users else [])

        def rewrite(self, match, g):
            return g(aten.linear.default, x, g.fold(thirds, "folded"), b)

    rule = dataclass(frozen=True)(type("FoldInside", (FoldInside,), {"fidelity": Fidelity.BITWISE}))()
    (record,) = Driver(graph, MatchVerifier()).run([rule])
    assert len(record.commits) == 1


def test_a_rule_that_reads_values_sees_the_values_of_the_match():
    def without_dead_channels(g, node, x, w, b):
        alive = [i for i, row in enumerate(g.graph.value(w)) if bool((row != 0).any())]
        kept = g(
            aten.linear.default, x, g(aten.slice.Tensor, w, 0, 0, len(alive)), g(aten.slice.Tensor, b, 0, 0, len(alive))
        )
        rest = g(aten.slice.Tensor, b, 0, len(alive))
        zeros = g(aten.mul.Tensor, g(aten.slice.Tensor, x, 1, 0, 1), 0.0)
        return g(aten.cat.default, [kept, g(aten.add.Tensor, zeros, rest)], 1)

    for reads in (True, False):
        graph = one_operator(aten.linear.default, (2, 6), weights=[(8, 6), (8,)])
        graph.weights["weight0"][5:] = 0
        rule = replacing(aten.linear.default, without_dead_channels, reads_values=reads)
        (record,) = Driver(graph, MatchVerifier()).run([rule])
        assert bool(record.commits) == reads


def test_equal_fragments_are_drawn_once_and_each_weight_is_looked_at():
    def unscaled(g, node, x, w, b):
        return g(aten.linear.default, x, g(aten.div.Tensor, g(aten.mul.Tensor, w, w), w), b)

    def layers(*weights):
        p = Program()
        x = p.input(torch.randn(2, 6))
        for w in weights:
            x = p(aten.linear.default, x, p.weight(w), p.weight(torch.randn(6)))
        return p.graph(x)

    rule = replacing(aten.linear.default, unscaled)
    (record,) = Driver(layers(*torch.randn(3, 6, 6)), MatchVerifier()).run([rule])
    draws = [commit.verdict.draws for commit in record.commits]
    assert draws[0] > draws[1] == draws[2] == 1
    (record,) = Driver(layers(*torch.randn(3, 6, 6)), MatchVerifier("thorough")).run([rule])
    assert min(commit.verdict.draws for commit in record.commits) > draws[0]
    # zero over zero, for the weights of the second layer alone
    (record,) = Driver(layers(torch.randn(6, 6), torch.eye(6)), MatchVerifier()).run([rule])
    assert len(record.commits) == 1
    assert "nan where the model's is finite" in record.rejections[0].reason
    assert "real weights" in record.rejections[0].reason


def test_the_same_program_over_the_inputs_in_another_order_is_another_case():
    def difference(g, node, x, y):
        first, second = (x, y) if x.name < y.name else (y, x)
        return g(aten.add.Tensor, first, g(aten.neg.default, second))

    p = Program()
    x, y = p.input(torch.randn(2, 3)), p.input(torch.randn(2, 3))
    graph = p.graph(p(aten.sub.Tensor, x, y), p(aten.sub.Tensor, y, x))
    (record,) = Driver(graph, MatchVerifier()).run([replacing(aten.sub.Tensor, difference)])
    assert len(record.commits) == len(record.rejections) == 1
