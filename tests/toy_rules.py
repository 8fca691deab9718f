"""Small rules and small graphs to run the driver on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from rewrite.driver import Driver, StepRecord
from rewrite.ops import Clamp, Negation
from rewrite.pattern import Op, Var
from rewrite.pipeline import Pass
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule
from tests.programs import Program, aten

relu, neg = aten.relu.default, aten.neg.default


@dataclass(frozen=True)
class OneRelu(Rule):
    """``relu(relu(x)) = relu(x)``, but not of a placeholder called x1."""

    fidelity = Fidelity.BITWISE
    pattern = Op(Clamp, "outer", input=Op(Clamp, "inner", input=Var("x")))

    def check(self, match: Match) -> Refusal | None:
        return Refusal("x1 is sacred", match.x, "call it otherwise") if match.x.name == "x1" else None

    def rewrite(self, match: Match, g: Any) -> Node:
        return g(aten.relu.default, match.x)


@dataclass(frozen=True)
class NoNegation(Rule):
    """``-(-x) = x``."""

    fidelity = Fidelity.BITWISE
    pattern = Op(Negation, input=Op(Negation, input=Var("x")))

    def rewrite(self, match: Match, g: Any) -> Node:
        return match.x


@dataclass(frozen=True)
class Both(Pass):
    def rules(self) -> tuple[Rule, ...]:
        return (OneRelu(), NoNegation())


@dataclass(frozen=True)
class Raises(Rule):
    fidelity = Fidelity.BITWISE
    where: str = "rewrite"

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            if node.target is relu:
                if self.where == "find":
                    raise KeyError("lost")
                yield Match(self, (node,), (node,))

    def check(self, match: Match) -> Refusal | None:
        if self.where == "check":
            raise ZeroDivisionError("by zero")
        return None

    def rewrite(self, match: Match, g: Any) -> Any:
        match self.where:
            case "shape":
                return g(aten.sum.default, match.inputs[0])
            case "count":
                return [match.inputs[0]] * 2
            case "mutation":
                return g(aten.relu_.default, match.inputs[0])
            case "foreign":
                return g(relu, match.outputs[0])
        raise ValueError("no idea")


def chain(*targets: Any, modules: Iterable[str] = (), **options: Any) -> tuple[Program, Any]:
    """A graph of operators with one argument in a row, each in a module of its own where paths are given."""
    program = Program(**options)
    node = program.input(torch.randn(3, 4))
    paths = list(modules)
    for i, target in enumerate(targets):
        node = program(target, node)
        if paths:
            node.meta["nn_module_stack"] = {"key": (paths[i], "Module")}
    return program, program.graph(node)


def run(graph: Any, *steps: Any, **options: Any) -> list[StepRecord]:
    records = Driver(graph, **options).run(steps)
    graph.check()
    return records
