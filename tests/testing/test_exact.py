"""What comparison modulo primes sees, and a tolerance does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes import FoldBatchNorm, FoldConstants, Reparameterize
from passes.fold_affine import FoldBatchNormAfter
from rewrite.pattern import Call, Var
from rewrite.rule import Fidelity, Rule
from rewrite.testing import NotPolynomialError, assert_exact_modulo, assert_rule, exact
from rewrite.testing.exact import difference_modulo
from rewrite.testing.field import Field
from tests.passes.blocks import Block, Branches, conv_norm
from tests.passes.rewriting import scatter
from tests.programs import Program, aten


def normed(eps: float = 1e-5) -> tuple[nn.Module, Tensor]:
    """A convolution and a norm."""
    model = scatter(nn.Sequential(nn.Conv2d(3, 4, (3, 2), padding=1), nn.BatchNorm2d(4, eps)))
    return model.double(), torch.randn(2, 3, 5, 4, dtype=torch.float64)


@dataclass(frozen=True)
class WithoutEps(FoldBatchNormAfter):
    """Wrong: it forgets ``eps``."""

    fidelity = Fidelity.ELEMENTWISE

    def rewrite(self, match: Any, g: Any) -> Any:
        layer, norm = match.layer, match.mapped.view
        scale = g(aten.div.Tensor, norm.weight, g(aten.sqrt.default, norm.var))
        shift = g(aten.sub.Tensor, norm.bias, g(aten.mul.Tensor, norm.mean, scale))
        weight = g(aten.mul.Tensor, layer.weight, g(aten.reshape.default, scale, [-1, 1, 1, 1]))
        bias = g(aten.add.Tensor, g(aten.mul.Tensor, layer.bias, scale), shift)
        padding = [low for low, _ in layer.padding]
        return g(aten.conv2d.default, layer.input, weight, bias, list(layer.stride), padding)


def test_a_digit_that_every_tolerance_allows():
    model, x = normed(eps=1e-16)
    assert_rule(WithoutEps(), model, x, matches=1)
    with pytest.raises(AssertionError, match=r"output 0 differs modulo 671\d+ in 200 of 200 elements"):
        assert_exact_modulo(WithoutEps(), model, x)
    with pytest.raises(AssertionError, match="rewrite 1, without-eps"):
        assert_rule(WithoutEps(), model, x, polynomial=True)


def test_right_rules_pass():
    model, x = normed()
    assert assert_exact_modulo(FoldBatchNorm(), model, x, matches=1).operators == ["conv2d"]
    assert_rule(FoldBatchNorm(), model, x, polynomial=True)
    branches = Branches([conv_norm(4, 3), conv_norm(4, 1), nn.Identity()]).eval()
    assert_exact_modulo(Reparameterize(), branches, torch.randn(2, 4, 5, 5))


def test_the_number_of_rewrites():
    model, x = normed()
    with pytest.raises(AssertionError, match="there are 1 rewrites, not 2"):
        assert_exact_modulo(FoldBatchNorm(), model, x, matches=2)


def test_folded_weights_are_computed_from_their_sources():
    model = Block(lambda self, x: x * (self.a * self.b), a=torch.rand(3), b=torch.rand(3)).eval()
    result = assert_exact_modulo(FoldConstants(), model, torch.randn(2, 3), matches=1)
    assert result.graph.program.results


@dataclass(frozen=True)
class ReluFirst(Rule):
    """``relu(2 x) = 2 relu(x)``, which needs to know what relu is."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.relu.default, self=Call(aten.mul.Tensor, self=Var("x"), other=2))

    def rewrite(self, match: Any, g: Any) -> Any:
        return g(aten.mul.Tensor, g(aten.relu.default, match.x), 2)


@dataclass(frozen=True)
class Doubled(Rule):
    """``2 x = x + x``, below a relu that it leaves alone."""

    fidelity = Fidelity.BITWISE
    pattern = Call(aten.mul.Tensor, self=Var("x"), other=2)

    def rewrite(self, match: Any, g: Any) -> Any:
        return g(aten.add.Tensor, match.x, match.x)


def test_activations_that_the_rule_leaves_alone_are_opaque():
    model, x = Block(lambda self, x: (x * 2).relu()).eval(), torch.randn(2, 3)
    with pytest.raises(NotPolynomialError, match=r"opaque=\{'relu'\}"):
        assert_exact_modulo(Doubled(), model, x)
    assert_exact_modulo(Doubled(), model, x, opaque={"relu"}, matches=1)
    assert_rule(ReluFirst(), model, x, matches=1)
    with pytest.raises(AssertionError, match="differs modulo"):
        assert_exact_modulo(ReluFirst(), model, x, opaque={"relu"})


@dataclass(frozen=True)
class ByValue(Rule):
    """Drops a convolution whose weights are zero."""

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True

    def find(self, graph: Any, dirty: Any) -> Any:
        return iter(())


def test_rules_that_read_values_are_refused():
    model, x = normed()
    with pytest.raises(ValueError, match="'by-value' reads the values of weights"):
        assert_exact_modulo(ByValue(), model, x)


def test_complex_values_are_refused():
    model = Block(lambda self, x: x * 2).eval()
    with pytest.raises(NotPolynomialError, match="complex"):
        assert_exact_modulo(Doubled(), model, torch.randn(2, 3, dtype=torch.complex64))


def test_an_element_without_inverse_is_drawn_again(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    class Watched(Field):
        def draw(self, shape: tuple[int, ...]) -> Tensor:
            drawn.append(self.prime)
            return super().draw(shape)

    monkeypatch.setattr(exact, "Field", Watched)
    monkeypatch.setattr(exact, "PRIMES", (5,))
    program = Program()
    graph = program.graph(program(aten.reciprocal.default, program.input(torch.ones(3))))
    assert difference_modulo(graph, graph.copy(), program.inputs, trials=8) == ""
    assert len(drawn) > 8


def test_what_can_only_be_divided_by_zero_is_said():
    program = Program()
    x = program.input(torch.ones(3))
    graph = program.graph(program(aten.reciprocal.default, program(aten.sub.Tensor, x, x)))
    with pytest.raises(NotPolynomialError, match="divided by zero"):
        difference_modulo(graph, graph.copy(), program.inputs)


def test_indices_keep_their_values():
    """With random ones nothing would be found, or not the rows that differ."""
    program = Program()
    places, x = program.input(torch.tensor([2, 0])), program.input(torch.randn(3, 4))
    graph = program.graph(program(aten.index_select.default, x, 0, places))
    other = Program()
    places, x = other.input(torch.tensor([2, 0])), other.input(torch.randn(3, 4))
    flipped = other.graph(other(aten.index_select.default, other(aten.flip.default, x, [0]), 0, places))
    inputs = [torch.tensor([2, 0]), torch.randn(3, 4)]
    assert difference_modulo(graph, graph.copy(), inputs) == ""
    assert "8 of 8 elements" in difference_modulo(graph, flipped, inputs)
    assert difference_modulo(graph, flipped, [torch.tensor([1, 1]), torch.randn(3, 4)]) == ""
