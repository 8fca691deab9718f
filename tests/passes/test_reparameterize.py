"""Merged blocks of the papers against the eager model, and against kernels read off with an impulse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes import Reparameterize
from rewrite.errors import PipelineError
from rewrite.pipeline import Registry
from tests.passes.blocks import Block, Branches, conv_norm, merged
from tests.passes.rewriting import Result

LARGE_KERNELS = {31: 5, 29: 5, 27: 5, 13: 5}
DILATED = {
    17: [(5, 1), (9, 2), (3, 4), (3, 5), (3, 7)],
    15: [(5, 1), (7, 2), (3, 3), (3, 5), (3, 7)],
    13: [(5, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
    11: [(5, 1), (5, 2), (3, 3), (3, 4), (3, 5)],
    9: [(5, 1), (5, 2), (3, 3), (3, 4)],
    7: [(5, 1), (3, 2), (3, 3)],
    5: [(3, 1), (3, 2)],
}


def impulse_kernel(model: nn.Module, channels: int, span: int) -> Tensor:
    """The kernel of a depthwise linear block, ``[C, 1, span, span]``: its response to an impulse, turned round."""
    size = 2 * span + 1
    x = torch.zeros(1, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        rest = model(x)
        x[:, :, span, span] = 1
        response = model(x) - rest
    half = span // 2
    inside = response[0, :, None, span - half : span + half + 1, span - half : span + half + 1]
    assert (response.abs() > 0).sum() == (inside.abs() > 0).sum()
    return inside.flip(2, 3)


def assert_impulse_response(model: nn.Module, result: Result, channels: int, span: int) -> None:
    (layer,) = result.layers
    assert layer.kernel == (span, span)
    assert layer.groups == channels
    expected = impulse_kernel(model.double(), channels, span)
    assert (result.graph.value(layer.weight) - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("kernel", "small"), LARGE_KERNELS.items())
def test_replknet_block(kernel: int, small: int):
    model = Branches([conv_norm(3, kernel, groups=3), conv_norm(3, small, groups=3)])
    result = merged(model, torch.randn(2, 3, 20, 16))
    assert result.operators == ["conv2d"]
    assert_impulse_response(model, result, 3, kernel)


@pytest.mark.parametrize("kernel", DILATED)
def test_dilated_reparam_block(kernel: int):
    branches = [conv_norm(3, k, r, groups=3) for k, r in DILATED[kernel]]
    model = nn.Sequential(Branches([conv_norm(3, kernel, groups=3), *branches]), nn.BatchNorm2d(3))
    result = merged(model, torch.randn(2, 3, 18, 10))
    assert result.operators == ["conv2d"]
    assert_impulse_response(model, result, 3, kernel)


def test_repvgg_block():
    model = Branches([conv_norm(6, 3), conv_norm(6, 1), nn.BatchNorm2d(6)])
    result = merged(model, torch.randn(2, 6, 7, 5))
    assert result.operators == ["conv2d"]
    assert [commit.rule for commit in result.record.commits] == ["merge-branches"]


def test_strided_grouped_repvgg_block():
    model = Branches([conv_norm(6, 3, groups=2, out=8, stride=2), conv_norm(6, 1, groups=2, out=8, stride=2)])
    result = merged(model, torch.randn(2, 6, 7, 6))
    assert result.operators == ["conv2d"]


def test_mobileone_block():
    parts = [nn.BatchNorm2d(4), conv_norm(4, 1, groups=4), *(conv_norm(4, 3, groups=4) for _ in range(4))]
    assert merged(Branches(parts), torch.randn(2, 4, 7, 5)).operators == ["conv2d"]


def test_fastvit_mixer():
    def forward(self: Block, x: Tensor) -> Tensor:
        return x + self.scale * (self.mixer(x) - self.norm(x))

    mixer = Branches([conv_norm(4, 7, groups=4), conv_norm(4, 1, groups=4), nn.BatchNorm2d(4)])
    model = Block(forward, mixer=mixer, norm=nn.BatchNorm2d(4), scale=torch.randn(4, 1, 1))
    result = merged(model, torch.randn(2, 4, 9, 8))
    assert result.operators == ["conv2d"]
    assert len(result.record.commits) == 1


def test_repvit_block():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) + self.point(x) + x)

    model = Block(
        forward,
        conv=conv_norm(4, 3, groups=4),
        point=nn.Conv2d(4, 4, 1, groups=4),
        norm=nn.BatchNorm2d(4),
    )
    assert merged(model, torch.randn(2, 4, 6, 5)).operators == ["conv2d"]


def test_two_heads_become_one():
    def forward(self: Block, x: Tensor) -> Tensor:
        return (self.head(x) + self.distilled(x)) / 2

    heads = {name: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7)) for name in ("head", "distilled")}
    assert merged(Block(forward, **heads), torch.randn(3, 5)).operators == ["linear"]


@pytest.mark.parametrize("value", [0, -3, 2.5, "large"])
def test_max_kernel_has_to_be_a_positive_integer(value: object):
    with pytest.raises(PipelineError, match="positive integer"):
        Reparameterize(max_kernel=value)  # type: ignore[arg-type]


def test_the_pass_prints_and_parses():
    registry = Registry([Reparameterize])
    for text in ("reparameterize", "reparameterize{max_kernel=31}"):
        assert str(registry.parse(text)) == text
