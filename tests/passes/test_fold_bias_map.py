"""A shift before zeros becomes a map, where the map is smaller than what it replaces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from passes import FoldAffine
from passes.fold_affine import FoldBiasMap
from rewrite.driver import Driver
from rewrite.testing import BatchNormSpec, ConvSpec, assert_rule, batch_norms, convolutions
from rewrite.verify import MatchVerifier
from rewrite.verify.operators import name_of
from tests.passes.blocks import Block, conv
from tests.passes.rewriting import scatter
from tests.programs import Program, aten


def pads(layer: ConvSpec) -> bool:
    """Whether the convolution itself pads; an uneven padding is an operator before it."""
    if isinstance(layer.padding, str):
        extents = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True)]
        return layer.padding == "same" and any(extents)
    return all(low == high for low, high in layer.padding) and any(map(any, layer.padding))


def pays(layer: ConvSpec) -> bool:
    """Whether three elements for each result are fewer than two for each input."""
    [x] = layer.inputs()
    return 3 * layer.module()(x)[0].numel() < 2 * x[0].numel()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(convolutions(padding=True, modes=["zeros"]), batch_norms())
def test_a_norm_before_zeros(layer: ConvSpec, norm: BatchNormSpec):
    model = nn.Sequential(norm.before(layer).module(), layer.module()).eval()
    result = assert_rule(FoldBiasMap(), model, layer.inputs(), matches=int(pads(layer) and pays(layer)), batches=(1,))
    assert [pads(layer) and not pays(layer)] == [
        any("adding a map of the bias would move" in reason for reason in result.reasons)
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_map_is_what_the_constant_gives(groups: int):
    """Read off by an image of zeros: there the convolution adds nothing of its own."""
    model = scatter(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1, groups=groups, bias=False)))
    result = assert_rule(FoldBiasMap(), model, torch.randn(2, 4, 7, 6), matches=1)
    [add] = [node for node in result.graph.calls() if name_of(node) == "add" and not result.graph.is_constant(node)]
    found = result.graph.value(add.args[1])
    assert found.shape == (1, 4, 4, 3)
    with torch.no_grad():
        assert torch.allclose(found, model(torch.zeros(1, 4, 7, 6)), atol=1e-6)
    assert not torch.allclose(found[:, :, :1], found[:, :, 1:2])  # the border is not the interior


SHIFTS: dict[str, Any] = {
    "a vector": lambda self, x: self.layer(x - self.vector),
    "a number": lambda self, x: self.layer(x + 0.5),
    "a parameter of no dimensions": lambda self, x: self.layer(x + self.scalar),
    "with a coefficient": lambda self, x: self.layer(self.vector - x),
    "behind another term": lambda self, x: self.layer(x.tanh() - (x + self.vector)),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_sums(name: str):
    model = Block(SHIFTS[name], layer=conv(4, 3, 3, stride=2, padding=1), vector=torch.randn(4, 1, 1),
                  scalar=torch.tensor(0.3)).eval()  # fmt: skip
    assert_rule(FoldAffine(), model, torch.randn(2, 4, 6, 6), matches=1, batches=(0, 1))


def test_a_norm_behind_goes_first():
    """It could not reach the convolution behind the map."""
    model = scatter(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4)))
    result = assert_rule(FoldAffine(), model, torch.randn(2, 4, 6, 6), matches=2)
    assert [commit.rule for commit in result.record.commits] == ["fold-batch-norm-after", "fold-bias-map"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.a(y) + self.b(y)


def test_several_convolutions_are_left_to_their_norm():
    assert_rule(FoldBiasMap(), scatter(Twice()), torch.randn(2, 4, 6, 6), matches=0)


def test_a_transposed_convolution_has_no_map():
    model = scatter(nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 1, 3, padding=1)))
    assert not assert_rule(FoldBiasMap(), model, torch.randn(2, 4, 6, 6), matches=0).reasons


def test_an_image_of_unknown_size_has_no_map():
    program = Program(dynamic=True)
    x = program.input(torch.randn(4, 8, 6))  # the last two dimensions are known, the first, of an image, is not
    image = program(aten.unsqueeze.default, program(aten.permute.default, x, [2, 0, 1]), 0)
    shifted = program(aten.add.Tensor, image, program.weight("s", torch.randn(6, 1, 1)))
    weight = program.weight("w", torch.randn(2, 6, 3, 3))
    graph = program.graph(program(aten.conv2d.default, shifted, weight, None, [2, 2], [1, 1]))
    [record] = Driver(graph, MatchVerifier()).run([FoldBiasMap()])
    assert not record.commits
    assert [refused.reason for refused in record.refused] == [
        "the image's size is not known, on which the map of the bias depends"
    ]


def test_channels_last_and_other_dtypes():
    model = scatter(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1))).bfloat16()
    x = torch.randn(2, 4, 8, 6, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    assert_rule(FoldBiasMap(), model, x, matches=1)
