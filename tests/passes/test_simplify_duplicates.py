"""The same computation twice: once, unless a caller holds both results or each draws its own random numbers."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.fx import Node

from passes.simplify import MergeDuplicates, Simplify
from rewrite.driver import Driver
from rewrite.graph import Mutation
from rewrite.ops import Product
from rewrite.pattern import Op
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Refusal, Rule
from tests.passes.rewriting import apply
from tests.programs import Program, aten, names, same_bits, special


def merged(program: Program, *outputs: Any):
    graph = program.graph(*outputs)
    before = program.run(graph.copy())
    result = apply(graph, MergeDuplicates())
    assert same_bits(before, program.run(graph))
    return graph, result


def test_equal_calls_become_one_however_they_spell_their_arguments():
    program = Program(dynamic=True)
    x, y = program.input(special(3, 4)), program.input(special(3, 4))
    first = program(aten.add.Tensor, x, y)
    second = program(aten.add.Tensor, x, y, alpha=1)
    third = program(aten.add.Tensor, x, other=y)
    graph, _ = merged(program, program(aten.cat.default, [first, second, third]))
    assert names(graph) == ["add", "cat"]


def test_whole_chains_and_their_readers_become_one():
    program = Program()
    x, w = program.input(special(3, 4)), program.weight("w", torch.randn(5, 4))

    def branch():
        hidden = program(aten.linear.default, x, w)
        return program(aten.gelu.default, program(aten.sin.default, hidden), approximate="tanh")

    graph, _ = merged(program, program(aten.mul.Tensor, branch(), program(aten.add.Tensor, branch(), branch())))
    assert names(graph) == ["linear", "sin", "gelu", "add", "mul"]


def test_splits_with_several_results_become_one():
    program = Program(dynamic=True)
    x = program(aten.sin.default, program.input(special(3, 8)))
    parts = [program(operator.getitem, program(aten.split.Tensor, x, 4, 1), i) for i in (0, 1, 1)]
    graph, _ = merged(program, program(aten.cat.default, parts))
    assert names(graph) == ["sin", "split", "getitem", "getitem", "cat"]


def test_constants_without_operands_become_one():
    program = Program()
    x = program.input(special(4))
    ramps = [program(aten.arange.default, 4), program(aten.arange.default, 4), program(aten.arange.default, 4.0)]
    graph, _ = merged(program, *(program(aten.add.Tensor, x, ramp) for ramp in ramps))
    assert names(graph).count("arange") == 2


def test_symbolic_sizes_become_one():
    program = Program(dynamic=True)
    x = program.input(special(3, 4))
    sizes = [program(aten.sym_size.int, x, 0) for _ in range(2)]
    parts = [program(aten.reshape.default, program(f, x), [size, 2, 2])
             for f, size in zip((aten.sin.default, aten.exp.default), sizes, strict=True)]  # fmt: skip
    graph, _ = merged(program, *parts)
    assert names(graph).count("sym_size") == 1


DIFFERENT = [
    ((aten.add.Tensor, ("x", 0.0)), (aten.add.Tensor, ("x", -0.0))),
    ((aten.add.Tensor, ("i", 1)), (aten.add.Tensor, ("i", 1.0))),
    ((aten.add.Tensor, ("i", 1)), (aten.add.Tensor, ("i", True))),
    ((aten.add.Tensor, ("x", "y")), (aten.add.Tensor, ("x", "z"))),
    ((aten.permute.default, ("x", [0, 1])), (aten.permute.default, ("x", [1, 0]))),
    ((aten.sum.dim_IntList, ("x", [0])), (aten.sum.dim_IntList, ("x", [0], True))),
    ((aten.mul.Tensor, ("x", 1)), (aten.add.Tensor, ("x", 1))),
]


@pytest.mark.parametrize("calls", DIFFERENT, ids=range(len(DIFFERENT)))
def test_calls_that_differ_stay_two(calls):
    program = Program()
    values = {name: program.input(special(4, 4)) for name in "xyz"} | {"i": program.input(torch.arange(4))}
    nodes = [program(target, *(values.get(a, a) if isinstance(a, str) else a for a in args)) for target, args in calls]
    graph, _ = merged(program, *(program(aten.neg.default, node) for node in nodes))
    assert len(graph.calls()) == 4


def test_random_numbers_are_drawn_as_often_as_before():
    program = Program()
    x = program.input(torch.ones(64))
    drawn = [program(aten.bernoulli.p, x, 0.5) for _ in range(2)]
    drawn += [program(aten.dropout.default, x, 0.5, True) for _ in range(2)]
    graph = program.graph(program(aten.stack.default, drawn))
    result = apply(graph, Simplify())
    assert names(graph) == ["bernoulli", "bernoulli", "dropout", "dropout", "stack"]
    assert not result.reasons


def test_two_results_that_the_model_returns_stay_two():
    program = Program()
    x = program.input(special(3, 4))
    a, b = program(aten.sin.default, x), program(aten.sin.default, x)
    graph, result = merged(program, a, program(aten.permute.default, b, [1, 0]), program(aten.exp.default, b))
    assert names(graph).count("sin") == 2
    assert result.reasons == ["the model returns both values, which would share memory"]


def test_a_returned_result_and_new_state_stay_two():
    program = Program()
    x, _ = program.input(special(3)), program.weight("state", special(3))
    a, b = program(aten.sin.default, x), program(aten.sin.default, x)
    graph = program.graph(a, b, mutations=(Mutation("weight", "state"),))
    apply(graph, MergeDuplicates())
    assert names(graph) == ["sin", "sin"]


@pytest.mark.parametrize("returned", [0, 1])
def test_one_returned_result_is_enough_for_both(returned: int):
    program = Program()
    x = program.input(special(3, 4))
    twice = [program(aten.sin.default, x) for _ in range(2)]
    graph, _ = merged(program, twice[returned], program(aten.exp.default, twice[1 - returned]))
    assert names(graph) == ["sin", "exp"]


def test_the_earlier_one_stays():
    program = Program()
    x = program.input(special(3, 4))
    twice = [program(aten.sin.default, x) for _ in range(2)]
    for line, node in enumerate(twice, 7):
        node.meta["stack_trace"] = f'  File "/home/user/net.py", line {line}, in forward\n    y = x.sin()\n'
    graph, _ = merged(program, program(aten.add.Tensor, *map(program, [aten.exp.default, aten.cos.default], twice)))
    [kept] = [node for node in graph.calls() if node.target is aten.sin.default]
    assert "line 7" in kept.meta["stack_trace"]


@dataclass(frozen=True)
class Rebuild(Rule):
    """Spells a product again, as a rule's weight algebra."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Op(Product)

    def check(self, match: Match) -> Refusal | None:
        return None if origin(match.outputs[0]) is None else Refusal("is rebuilt already")

    def rewrite(self, match: Match, g: Any) -> Node:
        node = match.outputs[0]
        return g(node.target, *node.args)


def test_weight_code_of_the_model_is_not_merged_with_algebra_of_a_rule():
    """They round in different places: the model's in float32, the rule's in float64 and once."""
    program = Program()
    w = program.weight("w", torch.rand(50))
    algebra = program(aten.mul.Tensor, w, 0.1)
    graph = program.graph(program(aten.add.Tensor, program.input(special(50)), algebra))
    Driver(graph).run([Rebuild()])
    [made] = [node for node in graph.calls() if node.target is aten.mul.Tensor]
    with graph.fx.inserting_before(graph.output):
        model = graph.fx.call_function(aten.mul.Tensor, made.args)
        model.meta["val"] = made.meta["val"]
        total = graph.fx.call_function(aten.sub.Tensor, (graph.calls()[-2], model))
        total.meta["val"] = made.meta["val"]
    graph.output.args = ((total,),)
    graph.check()
    apply(graph, MergeDuplicates())
    assert names(graph).count("mul") == 2


def test_merged_weight_code_of_the_model_stays_in_its_own_dtype():
    program = Program()
    w = program.weight("w", torch.rand(1000))
    steps = [program(aten.floor.default, program(aten.mul.Tensor, w, 10.0)) for _ in range(2)]
    x = program.input(torch.randn(1000))
    graph = program.graph(program(aten.add.Tensor, program(aten.mul.Tensor, x, steps[0]), steps[1]))
    expected = graph.value(steps[0])
    apply(graph, Simplify())
    assert names(graph) == ["mul", "floor", "mul", "add"]
    [kept] = [node for node in graph.calls() if node.target is aten.floor.default]
    assert origin(kept) is None
    assert same_bits(graph.value(kept), expected)
