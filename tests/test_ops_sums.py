"""Sums with their signs and coefficients, through add-trees."""

from __future__ import annotations

import pytest
import torch

from rewrite import ops
from rewrite.ops import view_as
from tests.programs import Program, aten

r = torch.randn


def test_sums_are_flattened_with_signs_and_coefficients():
    program = Program()
    x, y, z = (program.input(r(2, 3)) for _ in range(3))
    inner = program(aten.sub.Tensor, x, y, alpha=2)
    negated = program(aten.neg.default, program(aten.mul.Tensor, z, 1.5))
    node = program(aten.rsub.Tensor, inner, program(aten.add.Tensor, negated, 4), alpha=3)
    terms, nodes = view_as(node, ops.Sum).flatten()
    values = program.values(program.graph(node))
    total = sum(term.coefficient * (1 if term.node is None else values[term.node]) for term in terms)
    torch.testing.assert_close(total, values[node])
    assert [term.node for term in terms] == [x, y, negated.args[0], None]
    assert nodes[-1] is node
    assert len(nodes) == 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_sum_that_is_read_elsewhere_or_broadcast_is_a_term(dynamic):
    program = Program(dynamic)
    x, y = program.input(r(2, 3)), program.input(r(1, 3))
    shared = program(aten.add.Tensor, x, 1.0)
    narrow = program(aten.add.Tensor, y, 1.0)
    node = program(aten.add.Tensor, program(aten.add.Tensor, shared, narrow), shared)
    terms, _ = view_as(node, ops.Sum).flatten()
    assert [term.node for term in terms] == [shared, narrow, shared]
