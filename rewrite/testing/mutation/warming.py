"""What a process does once and forks need not do again: imports on first use, tables of operators, caches of shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewrite.driver import Driver
from rewrite.pattern import Call, Var
from rewrite.rule import Fidelity, Rule
from rewrite.trace import capture
from rewrite.verify import MatchVerifier

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten


@dataclass(frozen=True)
class _ClampForRelu(Rule):
    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.relu.default, self=Var("x"))

    def rewrite(self, match: Any, g: Builder) -> Node:
        return g(aten.clamp_min.default, match.x, 0)


def warm() -> None:
    """Capture a small model and rewrite it once."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()).eval()
    graph = capture(model, (torch.ones(2, 2, 4, 4),)).graph
    Driver(graph, MatchVerifier()).run([_ClampForRelu()])
