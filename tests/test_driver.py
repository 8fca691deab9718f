"""The worklist: what is tried in which order, what is remembered of it, and where new nodes say they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch.fx import Node

from passes import ReductionAlgebra
from rewrite.driver import Driver
from rewrite.pipeline import Pass
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Miss, Rule
from rewrite.testing.networks import Network, Step
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.programs import Program, aten, names
from tests.toy_rules import Both, NoNegation, OneRelu, chain, neg, relu, run


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_step_runs_to_its_fixed_point(length):
    program, graph = chain(*[relu] * length)
    expected = program.run(graph)
    [record] = run(graph, OneRelu())
    assert names(graph) == ["relu"]
    assert len(record.commits) == length - 1
    assert torch.equal(program.run(graph)[0], expected[0])


def test_the_rules_of_a_step_open_the_way_for_each_other():
    _, graph = chain(relu, neg, neg, relu, neg, neg, relu)
    [record] = run(graph, Both())
    assert names(graph) == ["relu"]
    assert {commit.rule for commit in record.commits} == {"one-relu", "no-negation"}


def test_steps_run_in_order_each_with_a_record():
    _, graph = chain(relu, neg, neg, relu)
    first, second, third = run(graph, OneRelu(), NoNegation(), OneRelu())
    assert [len(record.commits) for record in (first, second, third)] == [0, 1, 1]
    assert [record.step for record in (first, second, third)] == ["one-relu", "no-negation", "one-relu"]


def test_code_that_was_dead_before_the_step_is_erased_and_hides_nothing():
    program = Program()
    x = program.input(torch.randn(3))
    first = program(relu, x)
    program(aten.sin.default, first)  # read by nobody
    graph = program.graph(program(relu, first))
    run(graph, OneRelu())
    assert names(graph) == ["relu"]


@dataclass(frozen=True)
class DropCosine(Rule):
    """``x + 0 * cos(y) = x`` where the zero is spelled as a product."""

    fidelity = Fidelity.ELEMENTWISE
    radius = 0

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            if node.target is aten.add.Tensor and node.args[1].target is aten.mul.Tensor:
                yield Match(self, (node.args[1], node), (node,), {"x": node.args[0]})

    def rewrite(self, match: Match, g: Any) -> Node:
        return match.x


@dataclass(frozen=True)
class NearOneRelu(OneRelu):
    radius: ClassVar[int] = 1


@dataclass(frozen=True)
class DropThenMerge(Pass):
    def rules(self) -> tuple[Rule, ...]:
        return (DropCosine(), NearOneRelu())


def test_a_value_that_lost_a_reader_is_looked_at_again():
    """Dead code above a match ends where something lives on; there rules that want a single reader match now."""
    program = Program()
    x, y = program.input(torch.randn(3)), program.input(torch.randn(3))
    x, y = program(aten.exp.default, x), program(aten.sin.default, y)
    shared = program(relu, y)
    outer = program(relu, shared)
    tail = shared
    for _ in range(8):
        tail = program(aten.cos.default, tail)
    node = program(aten.add.Tensor, x, program(aten.mul.Tensor, tail, 0.0))
    graph = program.graph(node, outer)
    run(graph, DropThenMerge())
    assert names(graph) == ["exp", "sin", "relu"]


@dataclass(frozen=True)
class EveryReader(Rule):
    """Anchored at a value, it finds one match in each of its readers: ``sin`` becomes ``cos``."""

    fidelity = Fidelity.STRUCTURAL
    radius = 0

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            for user in list(node.users):
                if user.target is aten.sin.default:
                    yield Match(self, (user,), (user,))

    def rewrite(self, match: Match, g: Any) -> Node:
        return g(aten.cos.default, match.inputs[0])


def test_all_matches_at_one_node_are_made():
    program = Program()
    x = program.input(torch.randn(3))
    graph = program.graph(*(program(aten.sin.default, x) for _ in range(4)))
    run(graph, EveryReader())
    assert names(graph) == ["cos"] * 4


@dataclass(frozen=True)
class Halve(Rule):
    """``x * 2`` and ``x * 3`` for the same ``x``, computed from one doubled value: two outputs, one of them later."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            other = [user for user in node.users if user.target is aten.mul.Tensor and origin(user) is None]
            if len(other) == 2:
                yield Match(self, tuple(sorted(other)), tuple(sorted(other, reverse=True)))

    def rewrite(self, match: Match, g: Any) -> list[Node]:
        x = match.inputs[0]
        return [g(aten.mul.Tensor, x, float(output.args[1])) for output in match.outputs]


def test_several_outputs_are_sorted_into_place():
    program = Program()
    x = program.input(torch.randn(3))
    double = program(aten.mul.Tensor, x, 2.0)
    between = program(aten.sin.default, double)
    graph = program.graph(program(aten.mul.Tensor, x, 3.0), between)
    expected = program.run(graph)
    [record] = run(graph, Halve())
    assert len(record.commits) == 1
    torch.testing.assert_close(program.run(graph), expected)


# -- what is remembered -----------------------------------------------------------------------------------------------


def test_a_miss_is_recorded_with_reason_culprit_and_remedy():
    program = Program()
    node = program(relu, program(aten.sin.default, program.input(torch.randn(3))))
    node.meta["nn_module_stack"] = {"key": ("stage.act", "ReLU")}
    node.meta["stack_trace"] = '  File "/home/user/net.py", line 7, in forward\n    return self.act(x)\n'
    [record] = run(program.graph(node), OneRelu())
    [miss] = record.refused
    assert (miss.rule, miss.node, miss.module, miss.source) == ("one-relu", node.name, "stage.act", "net.py:7")
    assert "expected Clamp, found aten.sin" in miss.reason
    assert "'sin_default'" in miss.culprit
    assert miss.culprit_line.startswith("sin_default: f32[3] = aten.sin(x0)")
    assert miss.remedy == "put Clamp in its place"
    assert miss.text == "return self.act(x)"
    assert miss.matched == ("relu_default: f32[3] = aten.relu(sin_default)  # stage.act, net.py:7",)


def test_a_refusal_of_check_is_a_miss_with_the_nodes_of_the_match():
    program = Program()
    program.input(torch.randn(3))
    x1 = program.input(torch.randn(3))
    graph = program.graph(program(relu, program(relu, x1)))
    [record] = run(graph, OneRelu())
    assert names(graph) == ["relu", "relu"]
    [miss] = [miss for miss in record.refused if miss.reason == "x1 is sacred"]
    assert miss.remedy == "call it otherwise"
    assert [line.split(":")[0] for line in miss.matched] == [node.name for node in graph.calls()]


def test_a_miss_that_is_no_longer_there_is_forgotten():
    _, graph = chain(relu, neg, neg, relu)
    # the outer relu misses at first sight, because of the negation; the rules then remove it and the miss with it
    [record] = run(graph, Both())
    assert names(graph) == ["relu"]
    assert not [miss for miss in record.refused if "neg" in miss.reason]


def test_a_commit_tells_what_was_removed_and_added_and_where():
    _, graph = chain(relu, relu, modules=["net.a", "net.b"])
    [record] = run(graph, OneRelu())
    [commit] = record.commits
    assert (commit.number, commit.step, commit.rule, commit.module) == (1, "one-relu", "one-relu", "net.b")
    assert [line.split(" = ")[1].split("  #")[0] for line in commit.removed] == [
        "aten.relu(x0)",
        "aten.relu(relu_default)",
    ]
    [line] = commit.added
    assert "aten.relu(x0)" in line
    assert "by one-relu #1" in line


def test_a_commit_without_new_nodes_says_what_takes_the_place():
    _, graph = chain(aten.sin.default, neg, neg)
    [record] = run(graph, NoNegation())
    assert record.commits[0].added == ("neg_default_1 = sin_default",)


# -- provenance -------------------------------------------------------------------------------------------------------


def test_a_new_node_names_its_rule_its_match_and_what_it_replaced():
    _, graph = chain(relu, relu, relu, modules=["a", "b", "c"])
    replaced = [node.name for node in graph.calls()]
    [record] = run(graph, OneRelu())
    [node] = graph.calls()
    made = origin(node)
    assert (made.rule, made.match, made.algebra) == ("one-relu", 2, False)
    # the chain of rewrites leads back to the model: each name is the model's, or was added by an earlier commit
    added = {line.split(":")[0]: commit for commit in record.commits for line in commit.added}
    found, stack = set(), list(made.nodes)
    while stack:
        name = stack.pop()
        if name in added:
            stack.extend(line.split(":")[0] for line in added[name].removed)
        else:
            found.add(name)
    assert found == set(replaced)
    assert node.meta["nn_module_stack"] == {"key": ("c", "Module")}


def test_new_nodes_over_weights_alone_are_algebra():
    program = Program()
    w = program.weight("w", torch.randn(3))
    constant = program(relu, program(relu, w))
    graph = program.graph(program(aten.add.Tensor, program.input(torch.randn(3)), constant))
    run(graph, OneRelu())
    assert [origin(node).algebra for node in graph.calls() if node.target is relu] == [True]


def test_what_was_added_and_erased_at_once_is_not_looked_at_again():
    network = Network((4, 1, 2), (
        Step("mean", 0, dims=[2], keepdim=True), Step("mean", 1, dims=[1], keepdim=True), Step("sigmoid", 2),
        Step("clamp", 3, low=-1.0, high=1.0), Step("group_norm", 4, groups=1, uniform=True),
        Step("mean", 5, dims=[0, 1, 2, 3], keepdim=True),
    ), (6,))  # fmt: skip
    graph = capture(network.module(), network.inputs()).graph
    (record,) = Driver(graph, MatchVerifier()).run([ReductionAlgebra(finite=True)])
    assert record.commits
    assert not record.rejections
