"""Wrong rules, one of each kind, through the driver: rejected with a reason, and the program stays what it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from rewrite import optimize
from rewrite.driver import Driver
from rewrite.errors import CycleError, RuleError
from rewrite.fragment import Builder, extract
from rewrite.pipeline import Pass
from rewrite.printer import program as text
from rewrite.rule import Fidelity, Match, Rule
from rewrite.verify import MatchVerifier
from tests.verify.program import Program
from tests.verify.rules import replacing

aten = torch.ops.aten


def convolution(size=(9, 11), channels=4, kernel=3, stride=1, outputs=6):
    p = Program()
    x = p.input(torch.randn(2, channels, *size))
    weight = torch.randn(outputs, channels, kernel, kernel) / kernel
    y = p(aten.conv2d.default, x, p.weight(weight), p.weight(torch.randn(outputs)), [stride] * 2, [kernel // 2] * 2)
    return p.graph(p(aten.sigmoid.default, y))


def activation(target=aten.relu.default, size=(9, 11)):
    p = Program()
    x = p.input(torch.randn(2, 4, *size))
    return p.graph(p(aten.sin.default, p(target, p(aten.cos.default, x))))


def everywhere(g, node, x, w, b, *rest):
    return g(node.target, x, w, g(aten.mul.Tensor, b, 1.0001), *rest)


def at_borders(g, node, x, w, b, stride, padding):
    padded = g(aten.pad.default, x, [1, 1, 1, 1], "replicate")
    return g(node.target, padded, w, b, stride, [0, 0])


def in_one_channel(g, node, x, w, b, *rest):
    flipped = g(aten.neg.default, g(aten.select.int, w, 0, 2))
    return g(node.target, x, g(aten.select_scatter.default, w, flipped, 0, 2), b, *rest)


def at_odd_sizes(g, node, x, w, b, stride, padding):
    zeros = g(aten.pad.default, x, [1, 0, 1, 0])
    padded = g(aten.pad.default, zeros, [0, 1, 0, 1], "replicate")
    return g(node.target, padded, w, b, stride, [0, 0])


def for_negative_values(g, node, x, *rest):
    return g(aten.relu.default, x)


def in_large_batches(g, node, x):
    first = g(aten.slice.Tensor, x, 0, 0, 1)
    return g(aten.relu.default, g(aten.add.Tensor, g(aten.mul.Tensor, x, 0.0), first))


def in_channels_last(g, node, x):
    rows = g(aten.sym_size.int, x, 0)
    return g(aten.relu.default, g(aten.as_strided.default, x, [rows, 4, 9, 11], [396, 99, 11, 1]))


def in_bfloat16(g, node, x):
    lost = g(aten.eq.Tensor, g(aten.add.Tensor, x, 2.0**-14), x)
    return g(aten.relu.default, g(aten.where.ScalarSelf, lost, 0.0, x))


def with_nan(g, node, x):
    return g(aten.relu.default, g(aten.div.Tensor, g(aten.mul.Tensor, x, x), x))


def raising_when_run(g, node, x):
    return g(aten.relu.default, g(aten.index_select.default, x, 1, g(aten.arange.start, 1, 5)))


def with_another_dtype(g, node, x):
    return g(aten._to_copy.default, g(aten.relu.default, x), dtype=torch.float32)


CASES = {
    "everywhere": (convolution(), aten.conv2d.default, everywhere, "6 of 6 channels"),
    "borders": (convolution(), aten.conv2d.default, at_borders, "at the border only"),
    "channel": (convolution(), aten.conv2d.default, in_one_channel, "1 of 6 channels"),
    "odd": (convolution((9, 11), stride=2), aten.conv2d.default, at_odd_sizes, "at the border only"),
    "negative": (
        activation(aten.leaky_relu.default),
        aten.leaky_relu.default,
        for_negative_values,
        "'leaky_relu_default'",
    ),
    "batch": (activation(), aten.relu.default, in_large_batches, "batch 3"),
    "channels_last": (activation(), aten.relu.default, in_channels_last, "channels_last, batch 2"),
    "bfloat16": (activation(), aten.relu.default, in_bfloat16, "bfloat16"),
    "nan": (activation(), aten.relu.default, with_nan, "nan where the model's is finite"),
    "raises": (activation(), aten.relu.default, raising_when_run, "replacement raises"),
    "dtype": (activation(), aten.relu.default, with_another_dtype, "is float32"),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_wrong_rule_is_rejected_and_the_program_stays(kind):
    graph, target, build, reason = CASES[kind]
    rule = replacing(target, build, name=kind)
    before, x = text(graph.nodes), torch.randn(3, *graph.inputs[0].meta["val"].shape[1:])
    expected = graph.to_module()(x)
    (record,) = Driver(graph, MatchVerifier()).run([rule])
    assert not record.commits
    (rejection,) = record.rejections
    assert rejection.rule == kind
    assert reason in rejection.reason
    assert text(graph.nodes) == before
    graph.check()
    assert torch.equal(graph.to_module()(x)[0], expected[0])


def test_a_rule_that_is_wrong_at_other_sizes_only_is_noted():
    graph = convolution((20, 24), stride=2)
    x = torch.randn(2, 4, 20, 24)
    expected = graph.to_module()(x)[0]
    (record,) = Driver(graph, MatchVerifier()).run([replacing(aten.conv2d.default, at_odd_sizes)])
    (commit,) = record.commits
    assert "holds at the recorded sizes only" in commit.verdict.note
    torch.testing.assert_close(graph.to_module()(x)[0], expected)


@dataclass(frozen=True)
class MeanOverTheExample(Rule):
    """A mean over the batch as a sum, divided by the batch of the example."""

    fidelity = Fidelity.ELEMENTWISE

    compares: bool = False

    def find(self, graph, dirty):
        for node in dirty:
            if node.target is aten.mean.dim and node.args[1] == [0]:
                size = node.args[0].meta["val"].shape[0]
                number = (2 if size == 2 else 3) if self.compares else int(size)
                yield Match(self, (node,), (node,), {"x": node.args[0], "number": number})

    def rewrite(self, match, g):
        return g(aten.div.Tensor, g(aten.sum.dim_IntList, match.x, [0]), match.number)


@pytest.mark.parametrize("compares", [False, True])
def test_a_rule_that_fixes_the_batch_is_an_error(compares):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.sin().mean(0)

    with pytest.raises(RuleError, match="reads the size of the batch as a number, by int"):
        optimize(Mean().eval(), torch.randn(2, 3), pipeline=MeanOverTheExample(compares), lower="eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tap_of_a_sum_of_4096_channels_is_seen(dtype):
    p = Program()
    x = p.input(torch.randn(2, 4096, 5, 5, dtype=dtype))
    w = p.weight(torch.randn(1, 4096, 3, 3, dtype=dtype) / 192)
    graph = p.graph(p(aten.conv2d.default, x, w, None, [1, 1], [1, 1]))

    def shifted(g, node, x, w, *rest):
        moved = g(aten.roll.default, g(aten.slice.Tensor, w, 1, 1234, 1235), [1], [3])
        return g(node.target, x, g(aten.slice_scatter.default, w, moved, 1, 1234, 1235), *rest)

    (record,) = Driver(graph, MatchVerifier()).run([replacing(aten.conv2d.default, shifted)])
    assert "differs" in record.rejections[0].reason
    unchanged = replacing(aten.conv2d.default, lambda g, node, *args: g(node.target, *args))
    (record,) = Driver(graph, MatchVerifier()).run([unchanged])
    assert record.commits


@pytest.mark.parametrize("fidelity", [Fidelity.BITWISE, Fidelity.ELEMENTWISE])
@pytest.mark.parametrize("returned", [True, False])
def test_a_copy_is_kept_where_the_caller_would_notice(returned, fidelity):
    p = Program()
    x = p.input(torch.randn(2, 3))
    y = p(aten.clone.default, x)
    graph = p.graph(y if returned else p(aten.relu.default, y))
    rule = replacing(aten.clone.default, lambda g, node, x: x, fidelity)
    (record,) = Driver(graph, MatchVerifier()).run([rule])
    assert bool(record.commits) != returned
    if returned:
        assert "share memory" in record.rejections[0].reason
        x = torch.randn(2, 3)
        assert graph.to_module()(x)[0].data_ptr() != x.data_ptr()


def test_memory_is_compared_as_operators_use_it_whatever_they_declare():
    p = Program()
    x = p.input(torch.randn(2, 3))
    graph = p.graph(p(aten.clone.default, x))
    rule = replacing(aten.clone.default, lambda g, node, x: x)
    (match,) = rule.find(graph, graph.calls())
    new = Builder(graph, match, 1)
    verdict = MatchVerifier().verify(graph, match, extract(match), new.finish(rule.rewrite(match, new)))
    assert "'clone_default' would share memory with 'input0'" in verdict.reason


def test_bits_are_compared_where_a_rule_promises_them():
    def reordered(g, node, x):
        return g(aten.div.Tensor, g(aten.mul.Tensor, g(aten.relu.default, x), 3.0), 3.0)

    for fidelity in (Fidelity.ELEMENTWISE, Fidelity.BITWISE):
        (record,) = Driver(activation(), MatchVerifier()).run([replacing(aten.relu.default, reordered, fidelity)])
        assert bool(record.commits) == (fidelity is Fidelity.ELEMENTWISE)
    assert "is not equal" in record.rejections[0].reason


def test_what_the_replacement_alone_asks_of_a_value_is_no_fact():
    def through_logarithm(g, node, x):
        return g(aten.sin.default, g(aten.exp.default, g(aten.log.default, x)))

    (record,) = Driver(activation(), MatchVerifier()).run([replacing(aten.sin.default, through_logarithm)])
    assert not record.commits


def test_a_size_that_is_no_batch_size_is_that_of_the_example():
    p = Program()
    x = p.input(torch.randn(2, 4, 9, 11), free=(3,))
    graph = p.graph(p(aten.relu.default, x))
    wrong = replacing(aten.relu.default, lambda g, node, x: g(aten.abs.default, x))
    (record,) = Driver(graph, MatchVerifier()).run([wrong])
    assert "inputs [3, 4, 9, 11]" in record.rejections[0].reason
    same = replacing(aten.relu.default, lambda g, node, x: g(aten.relu.default, x))
    (record,) = Driver(graph, MatchVerifier(), fuel=1).run([same])
    assert record.commits


def test_a_rule_that_raises_leaves_the_graph():
    graph = activation()
    before = text(graph.nodes)

    def raising(g, node, x):
        g(aten.relu.default, x)
        raise KeyError("kernel")

    (record,) = Driver(graph, MatchVerifier()).run([replacing(aten.relu.default, raising)])
    assert "raised KeyError: 'kernel'" in record.rejections[0].reason
    assert text(graph.nodes) == before
    graph.check()


@dataclass(frozen=True)
class SubtractNegated(Rule):
    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        return (Match(self, (n,), (n,)) for n in dirty if n.target is aten.add.Tensor)

    def rewrite(self, match, g):
        x, y = match.nodes[0].args
        return g(aten.sub.Tensor, x, g(aten.neg.default, y))


@dataclass(frozen=True)
class AddNegated(Rule):
    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        for node in dirty:
            if node.target is aten.sub.Tensor and getattr(node.args[1], "target", None) is aten.neg.default:
                yield Match(self, (node.args[1], node), (node,))

    def rewrite(self, match, g):
        negation, node = match.nodes
        return g(aten.add.Tensor, node.args[0], negation.args[0])


@dataclass(frozen=True)
class BackAndForth(Pass):
    def rules(self):
        return SubtractNegated(), AddNegated()


def test_rules_that_undo_each_other_are_named():
    p = Program()
    x, y = p.input(torch.randn(2, 3)), p.input(torch.randn(2, 3))
    graph = p.graph(p(aten.add.Tensor, x, y))
    with pytest.raises(CycleError, match="'add-negated' and 'subtract-negated'"):
        Driver(graph, MatchVerifier()).run([BackAndForth()])
