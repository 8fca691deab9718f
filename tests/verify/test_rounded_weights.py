"""Rules whose weights are the model's up to rounding: allowed where they say so, and no more than that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.rule import Fidelity, Rule
from rewrite.verify import MatchVerifier
from tests.programs import Program, aten
from tests.verify.rules import replacing

linear = aten.linear.default


def layer(dtype: torch.dtype) -> Graph:
    p = Program()
    x, weight = p.input(torch.randn(3, 6, dtype=dtype)), p.weight("weight", torch.randn(8, 6, dtype=dtype))
    return p.graph(p(linear, x, weight))


def changing(by: float, rounds: bool) -> Rule:
    """A linear layer with its weight changed by a relative amount."""

    def build(g: Any, node: Any, x: Any, weight: Any) -> Any:
        return g(linear, x, g(aten.mul.Tensor, weight, 1 + by))

    rule = replacing(linear, build, Fidelity.NORMWISE, reads_values=True)
    type(rule).rounds_weights = rounds
    return rule


def made(dtype: torch.dtype, roundings: float, rounds: bool = True) -> bool:
    rule = changing(roundings * torch.finfo(dtype).eps / 2, rounds)
    (record,) = Driver(layer(dtype), MatchVerifier()).run([rule])
    return bool(record.commits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_roundings_are_allowed_to_those_who_say_so(dtype: torch.dtype):
    assert made(dtype, 2)
    assert not made(dtype, 2, rounds=False)
    assert not made(dtype, 200)


def test_weights_in_float64_are_compared_in_float64():
    assert not made(torch.float64, 2.0**20)


def test_only_the_dtype_of_weights_counts():
    """An input in bfloat16 says nothing about how weights in float32 were rounded."""
    p = Program()
    x = p(aten._to_copy.default, p.input(torch.randn(3, 6).bfloat16()), dtype=torch.float32)
    graph = p.graph(p(linear, x, p.weight("weight", torch.randn(8, 6))))
    (record,) = Driver(graph, MatchVerifier()).run([changing(2 * torch.finfo(torch.bfloat16).eps, rounds=True)])
    assert not record.commits
