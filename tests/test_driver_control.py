"""What a caller can ask of the driver: to stop early, to leave something alone, to be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import passes
from rewrite.driver import Driver, StepRecord
from rewrite.listener import Listener
from rewrite.rule import Match, Miss
from rewrite.trace import capture
from tests.programs import aten, names
from tests.toy_rules import Both, NoNegation, OneRelu, Raises, chain, neg, relu, run


@pytest.mark.parametrize("fuel", range(5))
def test_fuel_stops_after_so_many_rewrites_in_all(fuel):
    program, graph = chain(relu, relu, neg, neg, relu)
    expected = program.run(graph)
    driver = Driver(graph, fuel=fuel)
    records = driver.run([OneRelu(), NoNegation(), OneRelu()])
    graph.check()
    made = [commit.number for record in records for commit in record.commits]
    assert made == list(range(1, min(fuel, 3) + 1))
    assert driver.out_of_fuel == (fuel <= 3)
    assert torch.equal(program.run(graph)[0], expected[0])


class Branches(nn.Module):
    """Parallel branches with norms, a copy, a neutral factor and weight code."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.randn(4, 1, 1))
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [self.norms[0](self.wide(x)), self.norms[1](self.narrow(x)), self.norms[2](x)]
        return self.drop(sum(branches).relu() * 1) * self.gain.exp()


def test_every_amount_of_fuel_gives_a_right_program():
    model = Branches().eval().double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    original = capture(model, (x,)).graph
    with torch.no_grad():
        expected = model(x)
    total = None
    fuel = 0
    while total is None or fuel <= total:
        graph = original.copy()
        driver = Driver(graph, fuel=fuel)
        driver.run(passes.default_pipeline())
        graph.check()
        assert driver.commits == fuel or driver.commits < fuel
        with torch.no_grad():
            torch.testing.assert_close(graph.to_module()(x), expected, rtol=1e-12, atol=1e-12)
        if driver.commits < fuel:
            total = driver.commits
        fuel += 1
    assert total is not None
    assert total >= 6
    # the branches were merged, and nothing is computed from weights any more
    assert names(graph).count("conv2d") == 1
    assert not any(graph.is_constant(node) for node in graph.calls())


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ((), ["relu"]),
        (("one-relu",), ["relu", "relu", "relu", "relu"]),
        (("both",), ["relu", "neg", "neg", "relu", "relu", "relu"]),
        (("net.last",), ["relu", "relu", "relu"]),
        (("net.la",), ["relu"]),  # a path, not the beginning of a name
        (("net",), ["relu", "neg", "neg", "relu", "relu", "relu"]),
    ],
)
def test_rules_steps_and_modules_can_be_excluded(exclude, left):
    modules = ["net.first", "net.first", "net.first", "net.first", "net.last.a", "net.last.b"]
    _, graph = chain(relu, neg, neg, relu, relu, relu, modules=modules)
    [record] = run(graph, Both(), exclude=exclude)
    assert names(graph) == left
    if exclude == ("net",):
        assert {miss.reason for miss in record.refused if "excluded" in miss.reason} == {
            f"module '{path}' is excluded" for path in set(modules) - {"net.last.b"}
        }


class Log(Listener):
    def __init__(self) -> None:
        self.events: list[str] = []

    def step_started(self, step: Any, graph: Any) -> None:
        self.events.append(f"start {step.name}")

    def matched(self, match: Match) -> None:
        self.events.append(f"match {match.rule.name}")

    def missed(self, miss: Miss) -> None:
        self.events.append(f"miss {miss.rule}")

    def committed(self, commit: Any) -> None:
        self.events.append(f"commit {commit.number}")

    def rejected(self, rejection: Any) -> None:
        self.events.append(f"reject {rejection.rule}")

    def step_finished(self, record: StepRecord, graph: Any) -> None:
        self.events.append(f"finish {record.step}")


def test_listeners_hear_every_event_in_order():
    _, graph = chain(neg, neg, aten.sin.default, relu)
    first, second = Log(), Log()
    run(graph, NoNegation(), OneRelu(), Raises(), listeners=[first, second])
    assert first.events == [
        "start no-negation", "miss no-negation", "match no-negation", "commit 1", "finish no-negation",
        "start one-relu", "miss one-relu", "finish one-relu",
        "start raises", "match raises", "reject raises", "finish raises",
    ]  # fmt: skip
    assert second.events == first.events
