"""Every check of ``assert_rule``, each with a rule that this check alone can catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from passes import FoldBatchNorm, FoldConstants
from rewrite.driver import Driver
from rewrite.pattern import Call, Var
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule
from rewrite.testing import assert_rule, assertions
from rewrite.testing.agreement import disagreement, rebatched
from rewrite.testing.gradients import gradient_difference
from rewrite.testing.reference import Snapshot, in_double
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import scatter
from tests.programs import aten

Made = Callable[[Any, Any], Any]
X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Replaced(Rule):
    """Replaces ``2 x`` by what ``made`` builds; right with ``x + x``."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.mul.Tensor, self=Var("x"), other=2)
    made: Made = lambda g, x: g(aten.add.Tensor, x, x)

    def rewrite(self, match: Any, g: Any) -> Any:
        return self.made(g, match.x)


def doubled(**parts: Any) -> nn.Module:
    return Block(lambda self, x: x * 2 + 1, **parts).eval()


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the verification of single matches, which would see most of what is wrong here."""
    monkeypatch.setattr(assertions, "MatchVerifier", lambda: None)


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_right_rule_passes_and_the_result_says_what_was_done():
    result = assert_rule(Replaced(), doubled(), X, matches=1)
    assert result.operators == ["add", "add"]
    assert [str(node.target).split(".")[1] for node in result.before.calls()] == ["mul", "add"]
    assert result.reasons == result.layers == result.norms == []


def test_a_rejected_match():
    wrong = Replaced(lambda g, x: g(aten.add.Tensor, x, 2))
    with pytest.raises(AssertionError, match=r"the match at 'mul\w*' was rejected: output 'mul\w*' differs"):
        assert_rule(wrong, doubled(), X)


def test_the_number_of_matches():
    with pytest.raises(AssertionError, match=r"there are 1 rewrites, not 2\nrewrite 1, replaced:\n- mul.*\n\+ add"):
        assert_rule(Replaced(), doubled(), X, matches=2)


class Never(Rule):
    """Refuses every product."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph: Any, dirty: Any) -> Any:
        for node in dirty:
            if node.target is aten.mul.Tensor:
                yield Miss(self.name, node, Refusal("the moon is full", node))


def test_refusals():
    assert assert_rule(Never(), doubled(), X, refuses="moon").reasons == ["the moon is full"]
    with pytest.raises(AssertionError, match=r"no refusal says 'sun'\nrefused at 'mul\w*': the moon is full"):
        assert_rule(Never(), doubled(), X, refuses="sun")
    with pytest.raises(AssertionError, match="it was to refuse because 'moon', and makes 1 rewrites"):
        assert_rule(Replaced(), doubled(), X, refuses="moon")


@dataclass(frozen=True)
class Late(Replaced):
    """Finds something from its second run on."""

    fidelity = Fidelity.ELEMENTWISE
    runs: list[bool] = field(default_factory=list)

    def find(self, graph: Any, dirty: Any) -> Any:
        [product] = [node for node in graph.calls() if node.target is aten.mul.Tensor]
        if product in dirty:
            self.runs.append(True)
            if len(self.runs) > 1:
                yield Match(self, (product,), (product,), {"x": product.args[0]})


def test_a_second_run_that_finds_more():
    with pytest.raises(AssertionError, match=r"a second run finds 1 more, the first at 'mul\w*'\nrewrite 1, late"):
        assert_rule(Late(), doubled(), X)


# -- the user's model -------------------------------------------------------------------------------------------------


class Writes(Rule):
    """Writes to a weight of the model."""

    fidelity = Fidelity.ELEMENTWISE

    def find(self, graph: Any, dirty: Any) -> Any:
        with torch.no_grad():
            graph.weights["scale"].add_(1)
        return iter(())


def test_a_model_that_is_changed():
    model = Block(lambda self, x: x * self.scale, scale=torch.ones(3)).eval()
    with pytest.raises(AssertionError, match="the user's model was changed: 'scale' has other values"):
        assert_rule(Writes(), model, X)


CHANGES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "mode": (lambda model: model.train(), "the mode of '' was False and is True"),
    "flag": (lambda model: model[0].weight.requires_grad_(False), "requires_grad of '0.weight' was True and is False"),
    "buffer": (lambda model: model[0].register_buffer("late", torch.ones(1)), "'0.late' is new"),
    "object": (
        lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.clone())),
        "'0.weight' is another object",
    ),
    "values": (lambda model: model[1].running_var.mul_(2), "'1.running_var' has other values"),
    "attribute": (lambda model: setattr(model[1], "eps", 0.5), "'1.eps' was 1e-05 and is 0.5"),
    "gradient": (lambda model: model(torch.ones(2, 3)).sum().backward(),
                 "the gradient of '0.weight' was False and is True"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_model(name: str):
    change, said = CHANGES[name]
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = Snapshot.of(model)
    assert before.changes(model) == []
    change(model)
    assert said in before.changes(model)


# -- agreement --------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Made, str]] = {
    "beyond rounding": (
        lambda g, x: g(aten.mul.Tensor, x, 2 + 1e-12), "(the given inputs): in float64, output '0' differs"
    ),
    "in its own dtype": (
        lambda g, x: g(aten.add.Tensor, x, g(aten._to_copy.default, g(aten._to_copy.default, x, dtype=torch.bfloat16),
                                             dtype=torch.float32)),
        "(the given inputs): in float32, output '0' differs",
    ),
    "not for every batch": (
        lambda g, x: g(aten.add.Tensor, x, g(aten.index_add.default, x, 0, g(aten.arange.start_step, 1, 2, 1),
                                             g(aten.zeros.default, [1, 3]))),
        "(batch 1): the rewritten program raises ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("unverified")
def test_a_program_that_differs_from_the_model(name: str):
    made, said = WRONG[name]
    with pytest.raises(AssertionError, match="the program differs from the model") as raised:
        assert_rule(Replaced(made), doubled(), X)
    assert said in str(raised.value)


@pytest.mark.usefixtures("unverified")
def test_only_batches_that_are_asked_for():
    made, _ = WRONG["not for every batch"]
    assert_rule(Replaced(made), doubled(), X, batches=(2, 7))


def test_a_replacement_that_fixes_the_batch():
    fixed = Replaced(lambda g, x: g(aten.mul.Tensor, x, g(aten.full.default, [2, 1], 2.0)))
    with pytest.raises(AssertionError, match="the batch was free and no longer is"):
        assert_rule(fixed, doubled(), X)


def test_the_model_itself_is_the_oracle():
    """Not its graph: here the graph is not what the model computes."""
    captured = capture(doubled(), (X,)).graph
    said = disagreement(Block(lambda self, x: x * 2 + 1.0001).eval(), captured, captured, [X], Fidelity.ELEMENTWISE)
    assert said.startswith("in float64, output '0' differs in 6 of 6 elements")


def test_what_is_infinite_shows_nothing():
    with pytest.raises(AssertionError, match="output '0' is infinite or NaN everywhere, which shows nothing"):
        assert_rule(Replaced(), Block(lambda self, x: (x * 2).sqrt()).eval(), -torch.ones(2, 3))


def test_state_that_a_call_writes_is_compared():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    captured = capture(model, (X,), training=True).graph
    assert disagreement(model, captured, captured, [X], Fidelity.ELEMENTWISE) == ""
    other = captured.copy()
    result, *written = other.outputs
    other.output.args = ((result, *reversed(written)),)
    assert "output '" in disagreement(model, captured, other, [X], Fidelity.ELEMENTWISE)


def test_tensors_that_are_attributes_are_converted_too():
    model = doubled()
    model.__dict__["offset"] = torch.ones(3)
    model.function = lambda self, x: x @ torch.stack([self.offset] * 3)
    graph = capture(model, (X,)).graph
    assert [value.dtype for value in in_double(model, graph, [X])] == [torch.float64]
    assert model.offset.dtype == torch.float32


class Cheap(Replaced):
    """Says that it is not exact."""

    fidelity = Fidelity.APPROXIMATE


def test_rules_that_are_not_exact_and_random_models_are_not_compared():
    made, _ = WRONG["beyond rounding"]
    assert_rule(Cheap(made), doubled(), X, matches=1)
    model = Block(lambda self, x: self.drop(x * 2), drop=nn.Dropout()).train()
    assert_rule(Replaced(), model, X, training=True, matches=1)


def test_training_has_to_be_asked_for():
    with pytest.raises(Exception, match=r"call model\.eval\(\)"):
        assert_rule(Replaced(), doubled().train(), X)


def test_folded_weights_are_computed_in_float64_again():
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False)))
    x = torch.randn(2, 3, 5, 4)
    captured = capture(model, (x,)).graph
    old = captured.copy()
    Driver(captured).run([FoldBatchNorm(), FoldConstants()])
    assert captured.program.results
    assert disagreement(model, old, captured, [x], Fidelity.ELEMENTWISE) == ""


def test_other_batches_hold_the_numbers_of_the_example():
    model = Block(lambda self, x, places: x.sum(1) * places).eval()
    places = torch.tensor([4, 7])
    graph = capture(model, (X, places)).graph
    for size in (0, 1, 5):
        x, other = rebatched(graph, [X, places], size)
        assert (x.shape, other.shape) == ((size, 3), (size,))
        assert torch.isin(x, X).all()
        assert torch.isin(other, places).all()
        assert other.dtype == torch.int64
    empty, _ = rebatched(graph, [X[:0], places[:0]], 4)
    assert torch.equal(empty, torch.zeros(4, 3))


# -- gradients --------------------------------------------------------------------------------------------------------


def halved(g: Any, x: Any) -> Any:
    """``2 x`` of which the gradient is that of ``x``."""
    return g(aten.add.Tensor, g(aten.detach.default, x), x)


def test_gradients_of_inputs():
    with pytest.raises(AssertionError, match=r"the gradient of input 0 differs by \d"):
        assert_rule(Replaced(halved), doubled(), X)
    assert_rule(Replaced(halved), doubled(), X, gradients=False)


def test_gradients_of_parameters():
    model = Block(
        lambda self, x: self.layer(x) @ (self.scale * 2), layer=nn.Linear(3, 4), scale=torch.randn(4, 4)
    ).eval()
    with pytest.raises(AssertionError, match="the gradient of 'scale' differs"):
        assert_rule(Replaced(halved), model, X)
    assert_rule(Replaced(), model, X)


def test_parameters_that_are_shared_or_not_used():
    model = Block(
        lambda self, x: self.two(self.one(x) * 2), one=nn.Linear(3, 3), two=nn.Linear(3, 3), idle=torch.ones(1)
    )
    model.two.weight = model.one.weight
    assert_rule(Replaced(), model.eval(), X)


class ByValue(Replaced):
    """Reads the values of weights."""

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True


def test_rules_that_read_values_need_not_keep_gradients():
    assert_rule(ByValue(halved), doubled(), X, matches=1)
    with pytest.raises(AssertionError, match="the gradient of input 0"):
        assert_rule(ByValue(halved), doubled(), X, gradients=True)


def test_gradients_that_are_zero_in_exact_arithmetic():
    """A bias before batch statistics has none; only noise is left of it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    graph = capture(model, (torch.randn(5, 3),), training=True).graph
    assert gradient_difference(model, graph, graph, [torch.randn(5, 3)]) == ""


def test_models_without_gradients():
    model = Block(lambda self, x: (x * 2).argmax(1)).eval()
    assert_rule(Replaced(), model, X, matches=1)
