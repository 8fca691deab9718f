"""What must not pass for want of evidence: steep functions at zero, written state, a check that cannot be made."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from rewrite.driver import Driver
from rewrite.rule import Fidelity, Match, Rule
from rewrite.trace import capture, replica
from rewrite.verify import MatchVerifier, verify_model

aten = torch.ops.aten


@dataclass(frozen=True)
class DropBias(Rule):
    """Wrong: the convolution after an operator loses its bias."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph, dirty):
        for node in dirty:
            if node.target is aten.conv2d.default and len(node.args) > 2 and node.args[2] is not None:
                steep = node.args[0]
                yield Match(self, (steep.args[0], steep, node), (node,))

    def rewrite(self, match, g):
        relu, steep, convolution = match.nodes
        positive = g(relu.target, *relu.args)
        return g(aten.conv2d.default, g(steep.target, positive, *steep.args[1:]), convolution.args[1], None)


@dataclass(frozen=True)
class Rebuild(DropBias):
    """Right: the same operators again."""

    def rewrite(self, match, g):
        relu, steep, convolution = match.nodes
        positive = g(relu.target, *relu.args)
        return g(aten.conv2d.default, g(steep.target, positive, *steep.args[1:]), *convolution.args[1:])


class Steep(nn.Module):
    def __init__(self, function):
        super().__init__()
        # every window holds a zero of the relu
        self.conv = nn.Conv2d(3, 4, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.function(x.relu()))


@pytest.mark.parametrize("function", [torch.sqrt, lambda x: x**0.5, lambda x: x**2], ids=["sqrt", "root", "square"])
def test_a_function_that_is_steep_at_zero_hides_nothing(function):
    graph = capture(Steep(function).eval(), (torch.randn(2, 3, 8, 8),)).graph
    record = Driver(graph, MatchVerifier()).run([DropBias()])[0]
    assert not record.commits
    assert "allowed" in record.rejections[0].reason
    assert Driver(graph, MatchVerifier(), fuel=1).run([Rebuild()])[0].commits


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.mean(0))
        return x * 2


@pytest.mark.parametrize("right", [True, False])
def test_written_state_is_compared(right):
    model, x = Counter().eval(), torch.randn(2, 3)
    captured = capture(model, (x,))
    graph = captured.graph.copy()
    if not right:
        values = graph.outputs
        with graph.fx.inserting_before(graph.output):
            held = graph.fx.get_attr("total")
        held.meta["val"] = values[1].meta["val"]
        graph.output.args = ((values[0], held),)
    program = graph.to_module({"total": model.total.clone()})
    with replica(model) as source:
        verdict = verify_model(source, program, captured.graph, (x,))
    assert verdict.accepted is right


def test_what_cannot_be_checked_is_not_made():
    class Broken:
        def verify(self, graph, match, old, new):
            raise MemoryError("no room")

    graph = capture(Steep(torch.sqrt).eval(), (torch.randn(2, 3, 8, 8),)).graph
    record = Driver(graph, Broken()).run([DropBias()])[0]
    assert not record.commits
    assert "verification raised MemoryError" in record.rejections[0].reason
