"""Linear layers as 1x1 convolutions and back, against the eager model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes import ConvolutionAsLinear, LinearAsConvolution, Simplify, default_pipeline
from rewrite.driver import Driver
from rewrite.errors import CycleError
from rewrite.ops import Convolution, Linear
from rewrite.pipeline import ChoicePass, Pass, rules_of
from rewrite.rule import Rule
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import apply, assert_exact, rewrite
from tests.programs import Program, aten

TO_CONVOLUTION: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one dimension": (nn.Linear(3, 5), (2, 7, 3)),
    "two dimensions without bias": (nn.Linear(3, 5, bias=False), (2, 4, 6, 3)),
    "three dimensions": (nn.Linear(3, 5), (2, 2, 3, 4, 3)),
    "one feature": (nn.Linear(1, 1), (2, 4, 6, 1)),
    "one position": (nn.Linear(3, 5), (2, 1, 1, 3)),
    "a product with a matrix": (Block(lambda self, x: x @ self.matrix, matrix=torch.randn(3, 5)).eval(), (2, 4, 6, 3)),
}
TO_LINEAR: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one dimension": (nn.Conv1d(3, 5, 1), (2, 3, 7)),
    "two dimensions without bias": (nn.Conv2d(3, 5, 1, bias=False), (2, 3, 4, 6)),
    "three dimensions": (nn.Conv3d(3, 5, 1), (2, 3, 2, 3, 4)),
    "stride": (nn.Conv2d(3, 5, 1, (2, 3)), (2, 3, 5, 6)),
    "dilation": (nn.Conv2d(3, 5, 1, dilation=2), (2, 3, 5, 6)),
    "padding by name": (nn.Conv2d(3, 5, 1, padding="same"), (2, 3, 5, 6)),
}


@pytest.mark.parametrize("name", TO_CONVOLUTION)
def test_linear_layers_become_convolutions(name: str):
    model, shape = TO_CONVOLUTION[name]
    x = torch.randn(shape)
    result = rewrite(model.eval(), LinearAsConvolution(), x)
    assert len(result.record.commits) == 1
    (layer,) = result.layers
    assert isinstance(layer, Convolution)
    assert_exact(result, model, x)
    for batch in (0, 1, 3):
        other = torch.randn(batch, *shape[1:])
        torch.testing.assert_close(result.graph.to_module()(other), model(other))


@pytest.mark.parametrize("name", TO_LINEAR)
def test_convolutions_become_linear_layers(name: str):
    model, shape = TO_LINEAR[name]
    x = torch.randn(shape)
    result = rewrite(model.eval(), ConvolutionAsLinear(), x)
    assert len(result.record.commits) == 1
    (layer,) = result.layers
    assert isinstance(layer, Linear)
    assert_exact(result, model, x)
    for batch in (0, 1, 3):
        other = torch.randn(batch, *shape[1:])
        torch.testing.assert_close(result.graph.to_module()(other), model(other))


def reasons(model: nn.Module, step: Rule, x: Tensor) -> list[tuple[str, str]]:
    result = rewrite(model.eval(), step, x)
    assert not result.record.commits
    return [(refused.reason, refused.remedy) for refused in result.record.refused]


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str, str]] = {
    "groups": (nn.Conv2d(4, 6, 1, groups=2), (2, 4, 3, 3), "its channels are in 2 groups, and a linear layer has one",
               "set groups=1"),
    "padding": (nn.Conv2d(4, 6, 1, padding=1), (2, 4, 3, 3), "the convolution pads its input", "set padding=0"),
    "no batch": (nn.Conv2d(4, 6, 1), (4, 3, 3), "the convolution's input has no batch dimension",
                 "add one with unsqueeze(0)"),
    "transposed": (nn.ConvTranspose2d(4, 6, 1), (2, 4, 3, 3), "the convolution is transposed", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str):
    model, shape, reason, remedy = REFUSED[name]
    assert reasons(model, ConvolutionAsLinear(), torch.randn(shape)) == [(reason, remedy)]


@pytest.mark.parametrize(
    ("step", "model", "shape"),
    [
        (ConvolutionAsLinear(), nn.Conv2d(3, 5, 1, dtype=torch.complex64), (2, 3, 4, 4)),
        (LinearAsConvolution(), nn.Linear(3, 5, dtype=torch.complex64), (2, 4, 3)),
    ],
    ids=["convolution", "linear"],
)
def test_complex_layers_are_refused(step: Rule, model: nn.Module, shape: tuple[int, ...]):
    [(reason, _)] = reasons(model, step, torch.randn(shape, dtype=torch.complex64))
    assert reason == "its values are torch.complex64"


def test_other_layers_are_no_misses():
    assert not reasons(nn.Linear(3, 5), LinearAsConvolution(), torch.randn(2, 3))
    assert not reasons(nn.Linear(3, 5), LinearAsConvolution(), torch.randn(2, 1, 1, 1, 2, 3))
    assert not reasons(nn.Linear(3, 5), LinearAsConvolution(), torch.randn(2, 0, 3))
    assert not reasons(nn.Conv2d(3, 5, (1, 3)), ConvolutionAsLinear(), torch.randn(2, 3, 4, 4))
    assert not reasons(nn.Conv2d(3, 5, 1), LinearAsConvolution(), torch.randn(2, 3, 4, 4))
    assert not reasons(nn.Linear(3, 5), ConvolutionAsLinear(), torch.randn(2, 4, 3))


def test_a_size_that_may_be_zero_is_refused():
    program = Program(dynamic=True)
    x = program(aten.permute.default, program.input(torch.randn(9, 4, 2)), [1, 0, 2])
    linear = program(aten.linear.default, x, program.weight("weight", torch.randn(5, 2)))
    [refused] = apply(program.graph(linear), LinearAsConvolution()).record.refused
    assert refused.reason == "the size of its input is not fixed"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_returned_outputs_keep_their_layout(layout: torch.memory_format):
    x = torch.randn(2, 3, 5, 4).to(memory_format=layout)
    for model, step in ((nn.Conv2d(3, 5, 1), ConvolutionAsLinear()), (nn.Linear(4, 6), LinearAsConvolution())):
        found = rewrite(model.eval(), step, x).graph.to_module()(x)
        assert found.stride() == model(x).stride()


def test_non_finite_values_go_where_they_went():
    x = torch.randn(1, 3, 4, 4)
    x[0, 0, 0, 0], x[0, 1, 2, 3], x[0, 2, 3, 3] = math.inf, math.nan, -math.inf
    for model, step, given in (
        (nn.Conv2d(3, 5, 1), ConvolutionAsLinear(), x),
        (nn.Linear(3, 5), LinearAsConvolution(), x.permute(0, 2, 3, 1)),
    ):
        found = rewrite(model.eval(), step, given).graph.to_module()(given)
        torch.testing.assert_close(found, model(given), equal_nan=True)


@pytest.mark.parametrize("first", [ConvolutionAsLinear(), LinearAsConvolution()], ids=lambda rule: rule.name)
def test_one_after_the_other_gives_the_program_back(first: Rule):
    second: Rule = LinearAsConvolution() if isinstance(first, ConvolutionAsLinear) else ConvolutionAsLinear()
    layer = nn.Conv2d(3, 5, 1) if isinstance(first, ConvolutionAsLinear) else nn.Linear(3, 5)
    model = nn.Sequential(nn.ReLU(), layer, nn.ReLU())
    x = torch.randn(2, 3, 4, 3)
    graph = capture(model.eval(), (x,)).graph
    before = [str(node.target) for node in graph.calls()]
    result = apply(graph, first)
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)
    result = apply(graph, second)
    assert len(result.record.commits) == 1
    result = apply(graph, Simplify())
    assert_exact(result, model, x)
    assert [str(node.target) for node in graph.calls() if not graph.is_constant(node)] == before


@dataclass(frozen=True)
class Both(Pass):
    def rules(self) -> tuple[Rule, ...]:
        return ConvolutionAsLinear(), LinearAsConvolution()


def test_in_one_step_they_undo_each_other():
    graph = capture(nn.Conv2d(3, 5, 1).eval(), (torch.randn(2, 3, 4, 4),)).graph
    with pytest.raises(CycleError, match="'convolution-as-linear' and 'linear-as-convolution'"):
        Driver(graph).run([Both()])


def test_no_default_has_either():
    made = [step for step in default_pipeline() if not isinstance(step, ChoicePass)]
    names = {rule.name for step in made for rule in rules_of(step)}
    assert not names & {"convolution-as-linear", "linear-as-convolution"}


def test_mixed_layers_of_a_block():
    """A ConvNeXt block: channels last for its linear layers, which become convolutions between the permutations."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        return x + self.second(self.first(self.norm(y)).relu()).permute(0, 3, 1, 2)

    model = Block(forward, depthwise=nn.Conv2d(4, 4, 7, padding=3, groups=4), norm=nn.LayerNorm(4),
                  first=nn.Linear(4, 8), second=nn.Linear(8, 4)).eval()  # fmt: skip
    x = torch.randn(2, 4, 8, 8)
    result = rewrite(model.eval(), LinearAsConvolution(), x)
    assert len(result.record.commits) == 2
    assert all(isinstance(layer, Convolution) for layer in result.layers)
    assert_exact(result, model, x)
