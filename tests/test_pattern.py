"""Patterns: what they capture, and how far a miss says that they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from rewrite.errors import RuleError
from rewrite.ops import BatchNorm, Convolution, Linear, Negation, Product
from rewrite.pattern import Call, Either, Op, Pattern, ProductOf, SumOf, Var
from rewrite.rule import Fidelity, Match, Miss, Rule
from tests.programs import Program, aten


@dataclass(frozen=True)
class Finder(Rule):
    """Finds the pattern that it is given, and rewrites nothing."""

    fidelity: ClassVar[Fidelity] = Fidelity.BITWISE


def search(pattern: Pattern, node, program: Program):
    return pattern.search(Finder(), program.graph(node), node)


def conv_norm(program: Program, eps: float = 1e-5, between: bool = False):
    """A convolution and a batch norm, with a rectifier between them where asked for."""
    x = program.input(torch.randn(1, 3, 5, 5))
    w = program.weight("w", torch.randn(4, 3, 3, 3))
    statistics = [program.weight(name, torch.ones(4)) for name in ("gamma", "beta", "mean", "var")]
    conv = program(aten.conv2d.default, x, w)
    middle = program(aten.relu.default, conv) if between else conv
    return x, conv, program(aten.batch_norm.default, middle, *statistics, False, 0.1, eps, False)


FOLD = Op(BatchNorm, "norm", input=Op(Convolution, "conv", input=Var("x")))


def test_a_match_holds_views_variables_nodes_and_boundary():
    program = Program()
    x, conv, norm = conv_norm(program)
    found = search(FOLD, norm, program)
    assert isinstance(found, Match)
    assert (found.conv.node, found.norm.node, found.x) == (conv, norm, x)
    assert found.nodes == (conv, norm)
    assert found.outputs == (norm,)
    assert set(found.inputs) == set(norm.all_input_nodes[1:]) | set(conv.all_input_nodes)
    with pytest.raises(AttributeError, match="no capture 'bias'"):
        _ = found.bias


def test_a_miss_names_what_was_expected_the_culprit_and_how_much_matched():
    program = Program()
    _, _, norm = conv_norm(program, between=True)
    found = search(FOLD, norm, program)
    assert isinstance(found, Miss)
    assert found.anchor is norm
    assert found.refusal.culprit is norm.args[0]
    assert "expected Convolution, found aten.relu" in found.refusal.reason
    assert found.refusal.remedy == "take relu out from between"
    assert found.matched == (norm,)
    assert "finder at 'batch_norm_default'" in str(found)


def test_what_is_not_even_the_anchor_is_no_miss():
    program = Program()
    _, conv, _ = conv_norm(program)
    assert search(FOLD, conv, program) is None


def test_fields_are_compared_with_values():
    program = Program()
    _, _, norm = conv_norm(program, eps=1e-3)
    assert isinstance(search(Op(BatchNorm, eps=1e-3), norm, program), Match)
    program = Program()
    _, _, norm = conv_norm(program, eps=1e-3)
    found = search(Op(BatchNorm, eps=1e-5), norm, program)
    assert "eps is 0.001, not 1e-05" in found.refusal.reason


def test_inputs_and_weights_are_called_so():
    program = Program()
    node = program(aten.neg.default, program.weight("w", torch.ones(2)))
    assert "found a weight" in search(Op(Negation, input=Op(Linear)), node, program).refusal.reason
    program = Program()
    node = program(aten.neg.default, program.input(torch.ones(2)))
    assert "found an input of the model" in search(Op(Negation, input=Op(Linear)), node, program).refusal.reason


def test_the_same_variable_twice_is_the_same_node():
    square = ProductOf(Var("x"), Var("x"))
    program = Program()
    x, y = program.input(torch.ones(2)), program.input(torch.ones(2))
    equal, other = program(aten.mul.Tensor, x, x), program(aten.mul.Tensor, x, y)
    graph = program.graph(equal, other)
    assert square.search(Finder(), graph, equal).x is x
    missed = square.search(Finder(), graph, other)
    assert "'x' would have to be two different values" in missed.refusal.reason


def test_the_same_variable_twice_is_an_equal_number():
    program = Program()
    x = program.input(torch.ones(2))
    first = program(aten.mul.Tensor, x, 0.1 + 0.2)
    second = program(aten.mul.Tensor, first, float("0.30000000000000004"))
    scaled = ProductOf(ProductOf(Var("x"), Var("scale", lambda v: isinstance(v, float))), Var("scale"))
    assert search(scaled, second, program).scale == 0.1 + 0.2


def test_the_same_operator_twice_is_the_same_node():
    program = Program()
    x = program.input(torch.ones(2))
    a, b = program(aten.neg.default, x), program(aten.neg.default, x)
    once, twice = program(aten.add.Tensor, a, b), program(aten.add.Tensor, a, a)
    pattern = SumOf(Op(Negation, "minus"), Op(Negation, "minus"))
    graph = program.graph(once, twice)
    assert pattern.search(Finder(), graph, twice).minus.node is a
    assert isinstance(pattern.search(Finder(), graph, once), Miss)


def test_a_restricted_variable_says_what_it_asks_for():
    program = Program()
    node = program(aten.neg.default, program.input(torch.ones(2)))
    found = search(Op(Negation, input=Var("w", lambda n: n.op == "get_attr", "a weight")), node, program)
    assert found.refusal.reason == "expected a weight"


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shape", ["left", "right", "balanced"])
def test_sums_match_in_any_order_and_nesting(swapped, shape):
    program = Program()
    x, y = program.input(torch.ones(2)), program.input(torch.ones(2))
    terms = [x, program(aten.neg.default, program(aten.relu.default, y)), program(aten.mul.Tensor, y, 2.0)]

    def add(a, b):
        return program(aten.add.Tensor, *((b, a) if swapped else (a, b)))

    if shape == "left":
        node = add(add(terms[0], terms[1]), terms[2])
    elif shape == "right":
        node = add(terms[0], add(terms[1], terms[2]))
    else:
        node = add(add(terms[2], terms[0]), terms[1])
    # a negation belongs to the sum, as a coefficient, so the pattern cannot ask for it
    found = search(SumOf(Op(Product, "scaled"), Var("x", lambda n: n is x), rest="rest"), node, program)
    assert found.x is x
    assert found.scaled.node is terms[2]
    assert [(term.coefficient, term.node) for term in found.rest] == [(-1.0, terms[1].args[0])]
    assert {terms[1], terms[2], node} < set(found.nodes)


def test_a_sum_tries_other_assignments_before_it_gives_up():
    program = Program()
    x, y = program.input(torch.ones(2)), program.input(torch.ones(2))
    scaled = program(aten.mul.Tensor, x, 2.0)
    node = program(aten.add.Tensor, scaled, y)
    # the first pattern would take either term, the second only the product
    assert search(SumOf(Var("any"), Op(Product, "scaled")), node, program).any is y


def test_a_sum_of_the_wrong_length_or_with_coefficients_is_a_miss():
    program = Program()
    x, y = program.input(torch.ones(2)), program.input(torch.ones(2))
    node = program(aten.add.Tensor, x, y, alpha=2)
    number = program(aten.add.Tensor, x, 1.0)
    graph = program.graph(node, number)
    three = SumOf(Var("a"), Var("b"), Var("c")).search(Finder(), graph, node)
    assert three.refusal.reason == "the sum has 2 terms, not 3"
    weighted = SumOf(Var("a"), Var("b")).search(Finder(), graph, node)
    assert "2.0 * x1 is not a value with coefficient one" in weighted.refusal.reason
    assert weighted.refusal.culprit is y
    # a plain number is no value that a variable could stand for
    assert "1.0 is not a value" in SumOf(Var("a"), Var("b")).search(Finder(), graph, number).refusal.reason


def test_alternatives_leave_no_trace_when_they_fail():
    program = Program()
    x = program.input(torch.ones(2))
    node = program(aten.relu.default, program(aten.neg.default, x))
    negated = Call(
        aten.relu.default, self=Either(Op(Negation, "first", input=Op(Linear)), Op(Negation, input=Var("x")))
    )
    found = search(negated, node, program)
    assert found.captures == {"x": x}
    assert found.nodes == (node.args[0], node)


def test_the_miss_of_alternatives_is_the_one_that_came_furthest():
    program = Program()
    _, _, norm = conv_norm(program, between=True)
    found = search(Op(BatchNorm, input=Either(Call(aten.relu.default, self=Op(Linear)), Op(Linear))), norm, program)
    assert found.matched == (norm.args[0], norm)
    assert "found aten.conv2d" in found.refusal.reason


def test_calls_match_arguments_by_schema_name():
    program = Program()
    x = program.input(torch.ones(2, 3))
    node = program(aten.softmax.int, x, -1)
    graph = program.graph(node)
    assert Call(aten.softmax.int, "soft", self=Var("x"), dim=-1).search(Finder(), graph, node).soft is node
    assert isinstance(Call(aten.softmax.int, dim=0).search(Finder(), graph, node), Miss)


def test_swapped_factors_are_told_to_swap():
    program = Program()
    x, y = program.input(torch.ones(2)), program.input(torch.ones(2))
    node = program(aten.mul.Tensor, x, program(aten.neg.default, y))
    found = search(Op(Product, left=Op(Negation, input=Var("y")), right=Var("x")), node, program)
    assert found.refusal.reason == "the factors stand the other way round"
    assert found.refusal.remedy == "swap those of mul"
    assert found.matched == (node.args[1], node)


def test_a_pattern_says_what_it_asks_for():
    assert str(FOLD) == "BatchNorm"
    assert str(Either(Op([Convolution, Linear]), Op(Product))) == "Convolution or Linear or Product"
    assert str(Call(aten.relu.default)) == "aten.relu.default"
    assert [str(SumOf()), str(ProductOf(Var("x"), Var("y"))), str(Var("x", what="a weight"))] == [
        "a sum", "a product", "a weight",
    ]  # fmt: skip


def test_a_misspelt_field_fails_where_the_pattern_is_written():
    with pytest.raises(RuleError, match=r"Convolution has no field 'wieght'; did you mean 'weight'\?"):
        Op(Convolution, wieght=Var("w"))
    with pytest.raises(RuleError, match="BatchNorm has no field 'kernel'"):
        Op([Convolution, BatchNorm], kernel=(1, 1))
    with pytest.raises(RuleError, match=r"aten\.softmax\.int has no field 'dims'; did you mean 'dim'\?"):
        Call(aten.softmax.int, dims=1)


def test_properties_of_views_can_be_matched():
    program = Program()
    _, conv, _ = conv_norm(program)
    assert isinstance(search(Op(Convolution, kernel=(3, 3), dims=2), conv, program), Match)
