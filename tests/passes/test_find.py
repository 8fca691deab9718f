"""What every rule does alike: asked about many nodes at once, it says what it says of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
from rewrite.graph import Graph
from rewrite.pipeline import rules_of
from rewrite.rule import Match, Miss, Rule
from rewrite.trace import capture
from tests.passes.rewriting import scatter

RULES = {rule.name: rule for step in passes.STEPS for rule in rules_of(step())}


class Part(nn.Module):
    """Something for each rule, and something that each refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.halves = nn.ModuleList(nn.Conv2d(4, 2, size, padding=size // 2) for size in (1, 3))
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.layers[0](x)).relu().relu()
        x = self.norms[1](self.layers[1](x).tanh()) + self.layers[2](x) * self.scale
        x = self.layers[3](x) * (self.scale + 1) + self.layers[4](x)
        x = self.norms[4](torch.cat([half(x) for half in self.halves], 1)) * torch.cat([self.halves[0](x)] * 2, 1)
        x = torch.cat([self.halves[0](x), x[:, 2:].sin()], 1) + self.scale
        x = self.drop(x.tanh() * self.scale) * 1 + 0
        x = x.flatten(1).unflatten(1, (4, 8, 8)).permute(0, 2, 3, 1).permute(0, 3, 1, 2)
        x = torch.cat([(x.sin() * x.sin()).neg().neg(), x.clone()])[:, :4]
        return self.layers[5](self.norms[2](x)) + self.norms[3](x.mT.flatten(2).unflatten(2, (8, 8)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    model = scatter(nn.Sequential(Part(), Part()))
    return capture(model, (torch.randn(2, 4, 8, 8),)).graph


def told(found: Match | Miss) -> tuple[Any, ...]:
    """What of a match or miss can be compared."""
    if isinstance(found, Match):
        return found.nodes, found.outputs
    return found.anchor, found.refusal, found.matched


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_says_of_many_nodes_what_it_says_of_each(rule: Rule, graph: Graph):
    nodes = list(graph.nodes)
    # a rule may tell the same at several nodes, and then tells it of many once
    each = {told(found) for node in nodes for found in rule.find(graph, [node])}
    assert {told(found) for found in rule.find(graph, nodes)} == each
