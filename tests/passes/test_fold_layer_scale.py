"""Factors for each channel folded into the layer before them, against the eager model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes import FoldLayerScale
from tests.passes.blocks import Block, conv
from tests.passes.rewriting import assert_exact, rewrite

Forward = Callable[[Block, Tensor], Tensor]

FOLDED: dict[str, tuple[nn.Module, Forward]] = {
    "convolution": (conv(4, 6, 3), lambda self, x: self.layer(x) * self.scale[:, None, None]),
    "divided": (conv(4, 6, 3, bias=False), lambda self, x: self.layer(x) / self.scale[None, :, None, None]),
    "scale first": (conv(4, 6, 3), lambda self, x: self.scale[:, None, None] * self.layer(x)),
    "transposed with groups": (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda self, x: self.layer(x) * self.scale[:, None, None],
    ),
    "linear": (nn.Linear(5, 6), lambda self, x: self.layer(x) * self.scale),
    "linear without bias": (nn.Linear(5, 6, bias=False), lambda self, x: self.layer(x) * self.scale),
    "matrix": (nn.Linear(5, 6), lambda self, x: torch.mm(x[0, 0], self.layer.weight.T) * self.scale),
    "matrix transposed": (
        nn.Linear(5, 6),
        lambda self, x: torch.addmm(self.layer.bias, x[0, 0], self.layer.weight.t()) * self.scale,
    ),
    "channels first again": (
        nn.Linear(5, 6),
        lambda self, x: self.layer(x).permute(0, 3, 1, 2) * self.scale[:, None, None],
    ),
    "flattened": (conv(4, 6, 3), lambda self, x: self.layer(x).flatten(2).mT * self.scale),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_factor_disappears(name: str):
    layer, forward = FOLDED[name]
    model = Block(forward, layer=layer, scale=torch.randn(6)).eval()
    x = torch.randn(2, 4, 7, 5)
    result = rewrite(model, FoldLayerScale(), x)
    assert len(result.record.commits) == 1
    assert not {"mul", "div"} & set(result.operators)
    assert_exact(result, model, x)


KEPT: dict[str, Forward] = {
    "varies along another dimension": lambda self, x: self.layer(x) * self.scale,
    "depends on the input": lambda self, x: self.layer(x) * x.mean((2, 3), keepdim=True),
    "is divided by the layer": lambda self, x: self.scale[:, None, None] / self.layer(x),
    "applies to channels that a reshape mixed": lambda self, x: self.layer(x).reshape(2, 3, 8, 4) * self.scale[:4],
}


@pytest.mark.parametrize("name", KEPT)
def test_other_factors_stay(name: str):
    model = Block(KEPT[name], layer=conv(4, 4, 1), scale=torch.randn(4)).eval()
    x = torch.randn(2, 4, 6, 4)
    result = rewrite(model, FoldLayerScale(), x)
    assert not result.record.commits
    if "another" in name:
        assert result.reasons == ["the factor is not one for each output channel of the layer"]


def test_a_layer_that_is_read_elsewhere_keeps_its_weights():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * self.scale[:, None, None] + y.relu()

    result = rewrite(
        Block(forward, layer=conv(4, 4, 1), scale=torch.randn(4)).eval(), FoldLayerScale(), torch.randn(2, 4, 6, 4)
    )
    assert not result.record.commits
    assert any("is also read elsewhere" in reason for reason in result.reasons)


def reasons(forward: Forward, **parts: object) -> list[tuple[str, str]]:
    model = Block(forward, **{"layer": conv(4, 4, 1), "scale": torch.rand(4, 1, 1) + 1, **parts}).eval()
    result = rewrite(model, FoldLayerScale(), torch.randn(2, 4, 6, 4))
    assert not result.record.commits
    return [(refused.reason, refused.remedy) for refused in result.record.refused]


def test_what_stands_between_layer_and_factor_is_named():
    [(reason, remedy)] = reasons(lambda self, x: self.layer(x).relu() * self.scale)
    assert reason == "relu stands between the layer and the factor"
    assert remedy.startswith("apply the factor before relu (")


def test_a_factor_that_is_divided_is_told_to_swap():
    assert reasons(lambda self, x: self.scale / self.layer(x)) == [
        ("the factor is divided by the layer", "divide the layer by the factor")
    ]


def test_a_wider_factor_is_told_to_keep_the_dtype():
    [(reason, remedy)] = reasons(lambda self, x: self.layer(x) * self.scale, scale=torch.rand(4, 1, 1).double())
    assert reason == "the product turns torch.float32 into torch.float64"
    assert remedy == "convert the factor to torch.float32"


def test_gates_and_factors_of_no_layer_are_no_misses():
    assert not reasons(lambda self, x: self.layer(x) * x.mean((2, 3), keepdim=True))
    assert not reasons(lambda self, x: x * self.scale)
    assert not reasons(lambda self, x: (self.layer(x) + x) * self.scale)


def test_complex_layers_are_refused():
    model = Block(lambda self, x: self.layer(x) * self.scale, layer=nn.Linear(5, 6, dtype=torch.complex64))
    model.scale = nn.Parameter(torch.randn(6, dtype=torch.complex64))
    result = rewrite(model.eval(), FoldLayerScale(), torch.randn(2, 5, dtype=torch.complex64))
    assert result.reasons == ["its values are torch.complex64"]
