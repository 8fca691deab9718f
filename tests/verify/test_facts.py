"""What is known of values from the operators that read them."""

from __future__ import annotations

import operator

import torch

from rewrite.fragment import Fragment
from rewrite.verify.facts import Fact, Role, facts
from tests.verify.fragments import whole
from tests.verify.program import Program

aten = torch.ops.aten


def known(graph):
    return {str(node.target): fact for node, fact in facts(whole(graph), Fragment()).items()}


def test_parameters_of_a_norm_and_a_convolution():
    p = Program()
    x = p.input(torch.randn(2, 6, 8, 8))
    w, gamma, beta, mean, var = (p.weight(torch.rand(shape)) for shape in [(4, 3, 5, 5), (4,), (4,), (4,), (4,)])
    y = p(aten.conv2d.default, x, w, None, [1, 1], [0, 0], [1, 1], 2)
    norm = p(aten._native_batch_norm_legit_no_training.default, y, gamma, beta, mean, var, 0.1, 1e-5)
    found = known(p.graph(p(operator.getitem, norm, 0)))
    assert found["input0"] == Fact()
    assert found["weight0"] == Fact(Role.KERNEL, fan_in=75)
    assert found["weight1"].role == Role.SCALE
    assert found["weight2"].role == found["weight3"].role == Role.PLAIN
    assert found["weight4"].role == Role.POSITIVE


def test_a_fact_is_seen_through_reshapes_and_small_sums():
    p = Program()
    x, var = p.input(torch.randn(2, 6, 8, 8)), p.weight(torch.rand(6))
    shaped = p(aten.reshape.default, p(aten.add.Tensor, var, 1e-5), [6, 1, 1])
    found = known(p.graph(p(aten.mul.Tensor, x, p(aten.rsqrt.default, shaped))))
    assert found["weight0"].role == Role.POSITIVE
    assert found["input0"].role == Role.PLAIN


def test_divisors_and_layer_scales_are_not_near_zero():
    p = Program()
    x, y, scale = p.input(torch.randn(2, 6)), p.input(torch.randn(2, 6)), p.weight(torch.rand(6))
    found = known(p.graph(p(aten.mul.Tensor, p(aten.div.Tensor, x, y), scale)))
    assert [found[name].role for name in ("input0", "input1", "weight0")] == [Role.PLAIN, Role.SCALE, Role.SCALE]


def test_an_index_is_below_the_smallest_size_that_it_indexes():
    p = Program()
    rows = p.input(torch.zeros(2, 3, dtype=torch.int64))
    wide, narrow = p.weight(torch.randn(9, 4)), p.weight(torch.randn(5, 4))
    both = [p(aten.embedding.default, wide, rows), p(aten.index.Tensor, narrow, [rows])]
    found = known(p.graph(p(aten.add.Tensor, *both)))
    assert found["input0"] == Fact(Role.INDEX, bound=5)


def test_a_class_is_below_their_number():
    p = Program()
    few, many = (p.input(torch.zeros(2, dtype=torch.int64)) for _ in range(2))
    found = known(p.graph(p(aten.one_hot.default, many, 7), p(aten.one_hot.default, few, 3)))
    assert found["input1"] == Fact(Role.INDEX, bound=7)
    assert found["input0"] == Fact(Role.INDEX, bound=3)


def test_what_the_replacement_asks_counts_only_for_what_it_alone_reads():
    p = Program()
    x, var = p.input(torch.randn(2, 6)), p.weight(torch.rand(6))
    graph = p.graph(p(aten.mul.Tensor, p(aten.sqrt.default, x), p(aten.sqrt.default, var)))
    new, (first, second) = whole(graph), whole(graph).inputs
    q = Program()
    other = q.input(torch.randn(2, 6))
    old = whole(q.graph(q(aten.relu.default, other)))
    old.inputs = {first: old.inputs[other]}
    found = facts(old, new)
    assert found[first].role == Role.PLAIN
    assert found[second].role == Role.POSITIVE
