"""Rules that fail, rules that undo each other, rewrites that are not verified: the graph stays as it was."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.fx import Node

from rewrite.driver import Driver
from rewrite.errors import CycleError
from rewrite.ops import Negation, Product
from rewrite.pattern import Op, Var
from rewrite.pipeline import Pass
from rewrite.rule import Fidelity, Match, Miss, Rule
from rewrite.verdict import Verdict
from tests.programs import Program, aten, names
from tests.toy_rules import Both, NoNegation, OneRelu, Raises, chain, neg, relu, run

FAILURES = {
    "rewrite": "raised ValueError: no idea",
    "check": "raised ZeroDivisionError: by zero",
    "shape": r"replaced 'relu_default' of torch.float32\[3, 4\] by a value of torch.float32\[\]",
    "count": "returned 2 values for 1 outputs",
    "mutation": "writes to its input",
    "foreign": "reads 'relu_default', which is neither an input of its match nor a constant",
}


@pytest.mark.parametrize("where", FAILURES)
def test_a_rule_that_fails_leaves_the_graph_as_it_is(where):
    _, graph = chain(relu)
    before = [node.format_node() for node in graph.nodes]
    [record] = run(graph, Raises(where))
    assert [node.format_node() for node in graph.nodes] == before
    [rejection] = record.rejections
    assert re.search(FAILURES[where], rejection.reason)
    assert not record.commits


def test_a_find_that_fails_is_switched_off_and_the_others_go_on():
    @dataclass(frozen=True)
    class Mixed(Pass):
        def rules(self) -> tuple[Rule, ...]:
            return (Raises("find"), NoNegation())

    _, graph = chain(relu, neg, neg, relu)
    [record] = run(graph, Mixed())
    [rejection] = record.rejections
    assert "find raised KeyError: 'lost'; the rule was switched off" in rejection.reason
    assert names(graph) == ["relu", "relu"]


def test_rules_that_undo_each_other_are_named():
    @dataclass(frozen=True)
    class There(Rule):
        fidelity = Fidelity.BITWISE
        pattern = Op(Negation, input=Var("x"))

        def rewrite(self, match: Match, g: Any) -> Node:
            return g(aten.mul.Tensor, match.x, -1.0)

    @dataclass(frozen=True)
    class BackAgain(Rule):
        fidelity = Fidelity.BITWISE
        pattern = Op(Product, left=Var("x"), right=-1.0)

        def rewrite(self, match: Match, g: Any) -> Node:
            return g(neg, match.x)

    @dataclass(frozen=True)
    class Loop(Pass):
        def rules(self) -> tuple[Rule, ...]:
            return (There(), BackAgain(), OneRelu())

    _, graph = chain(relu, neg, relu)
    with pytest.raises(CycleError, match=r"step 'loop' .*'back-again' and 'there' undo each other"):
        Driver(graph).run([Loop()])


def test_a_rule_that_matches_what_it_makes_is_named():
    @dataclass(frozen=True)
    class Same(Rule):
        fidelity = Fidelity.BITWISE
        pattern = Op(Negation, input=Var("x"))

        def rewrite(self, match: Match, g: Any) -> Node:
            return g(neg, match.x)

    _, graph = chain(relu, neg, relu)
    with pytest.raises(CycleError, match=r"step 'same' .* the rule 'same' matches what it makes itself"):
        Driver(graph).run([Same()])


def test_a_rule_that_never_ends_is_stopped():
    @dataclass(frozen=True)
    class Grow(Rule):
        fidelity = Fidelity.STRUCTURAL
        pattern = Op(Negation, input=Var("x"))

        def rewrite(self, match: Match, g: Any) -> Node:
            return g(neg, g(aten.sin.default, match.x))

    _, graph = chain(relu, neg, relu)
    with pytest.raises(CycleError, match="step 'grow' does not come to an end: results of 'grow' have been rewritten"):
        Driver(graph).run([Grow()])


@dataclass(frozen=True)
class DropCopy(Rule):
    fidelity = Fidelity.BITWISE

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            if node.target is aten.clone.default:
                yield Match(self, (node,), (node,))

    def rewrite(self, match: Match, g: Any) -> Node:
        return match.inputs[0]


def test_a_rewrite_that_lets_outputs_share_memory_is_taken_back():
    program = Program()
    x = program.input(torch.randn(3))
    graph = program.graph(program(aten.clone.default, x), program(aten.sin.default, program(aten.clone.default, x)))
    [record] = run(graph, DropCopy())
    assert len(record.commits) == 1
    [rejection] = record.rejections
    assert "share memory" in rejection.reason
    assert names(graph) == ["clone", "sin"]
    output = program.run(graph)[0]
    assert output.data_ptr() != program.inputs[0].data_ptr()


class Judge:
    """Accepts by the name of the rule, and counts how often it is asked."""

    def __init__(self, *trusted: str):
        self.trusted = trusted
        self.asked: list[str] = []

    def verify(self, graph: Any, match: Match, old: Any, new: Any) -> Verdict:
        self.asked.append(match.rule.name)
        assert len(old.calls()) == len(match.nodes)
        return Verdict(match.rule.name in self.trusted, "off by 3 ulp", draws=2, seconds=0.25)


def test_a_rewrite_that_is_not_verified_is_not_made_and_not_tried_again():
    _, graph = chain(relu, relu, neg, neg)
    judge = Judge("no-negation")
    [record] = run(graph, Both(), verifier=judge)
    assert names(graph) == ["relu", "relu"]
    assert [rejection.reason for rejection in record.rejections] == ["off by 3 ulp"]
    assert sorted(judge.asked) == ["no-negation", "one-relu"]
    assert (record.draws, record.verify_seconds) == (4, 0.5)
