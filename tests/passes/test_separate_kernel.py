"""Separable kernels as one convolution along each dimension, against the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldConstants, SeparateKernel
from passes.low_rank import numerical_rank
from rewrite import optimize
from rewrite.flops import Sizes
from rewrite.gain import work
from rewrite.offering import offers_in
from rewrite.pipeline import Pipeline
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, apply, assert_exact, rewrite

DOUBLE = torch.float64


def plant(conv: Any, rank: int) -> Any:
    """The convolution with kernels of this rank for each group, rows against columns."""
    groups, (out, channels, *kernel) = conv.groups, conv.weight.shape
    before = torch.randn(groups, rank, channels, kernel[0], dtype=DOUBLE)
    after = torch.randn(groups, out // groups, rank, kernel[1], dtype=DOUBLE)
    product = torch.einsum("grci,gorj->gocij", before, after) / (channels * kernel[0] * kernel[1]) ** 0.5
    with torch.no_grad():
        conv.weight.copy_(product.reshape(conv.weight.shape))
    return conv.eval()


def shapes(result: Result) -> list[tuple[int, ...]]:
    return [tuple(layer.node.args[1].meta["val"].shape) for layer in result.layers]


SEPARATED: dict[str, tuple[nn.Module, int, list[tuple[int, ...]]]] = {
    "depthwise": (nn.Conv2d(6, 6, 5, padding=2, groups=6), 1, [(6, 1, 5, 1), (6, 1, 1, 5)]),
    "depthwise of rank two": (nn.Conv2d(6, 6, 7, padding=3, groups=6), 2, [(12, 1, 7, 1), (6, 2, 1, 7)]),
    "depthwise with more outputs": (nn.Conv2d(6, 12, 5, padding=2, groups=6), 1, [(6, 1, 5, 1), (12, 1, 1, 5)]),
    "dense": (nn.Conv2d(6, 8, 3, padding=1), 3, [(3, 6, 3, 1), (8, 3, 1, 3)]),
    "groups": (nn.Conv2d(6, 8, 5, padding=2, groups=2), 2, [(4, 3, 5, 1), (8, 2, 1, 5)]),
    "without bias": (nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False), 1, [(6, 1, 5, 1), (6, 1, 1, 5)]),
    "rectangular, even": (nn.Conv2d(6, 6, (4, 6), padding=(1, 3), groups=6), 1, [(6, 1, 4, 1), (6, 1, 1, 6)]),
    "dilation": (nn.Conv2d(6, 6, 4, padding=(3, 2), groups=6, dilation=(2, 1)), 1, [(6, 1, 4, 1), (6, 1, 1, 4)]),
    "padding by name": (nn.Conv2d(6, 6, (4, 5), padding="same", groups=6), 1, [(6, 1, 4, 1), (6, 1, 1, 5)]),
    "stride along columns": (nn.Conv2d(6, 6, 5, (1, 2), padding=2, groups=6), 1, [(6, 1, 1, 5), (6, 1, 5, 1)]),
    "stride along rows": (nn.Conv2d(6, 6, 5, (2, 1), padding=2, groups=6), 1, [(6, 1, 5, 1), (6, 1, 1, 5)]),
    "no padding": (nn.Conv2d(6, 6, 5, groups=6), 1, [(6, 1, 5, 1), (6, 1, 1, 5)]),
    "zeros": (nn.Conv2d(6, 6, 3, groups=6), 0, [(6, 1, 3, 1), (6, 1, 1, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SEPARATED)
def test_every_geometry(name: str):
    layer, rank, expected = SEPARATED[name]
    model, x = plant(layer.double(), rank), torch.randn(2, 6, 9, 11, dtype=DOUBLE)
    result = rewrite(model, SeparateKernel(), x)
    assert len(result.record.commits) == 1
    assert sorted(shapes(result)) == sorted(expected)
    if "stride" in name:
        assert shapes(result) == expected
    assert_exact(result, model, x)
    assert_exact(result, model, torch.randn(1, 6, 9, 11))
    assert [layer.bias is None for layer in result.layers] == [True, model.bias is None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_up_to_rounding(dtype: torch.dtype):
    """What is of rank two in real arithmetic is of full rank once it is rounded."""
    model = plant(nn.Conv2d(6, 6, 7, padding=3, groups=6).to(dtype), 2)
    x = torch.randn(2, 6, 12, 12, dtype=dtype)
    result = rewrite(model, SeparateKernel(), x)
    assert shapes(result)[0][0] == 12
    [commit] = result.record.commits
    assert commit.verdict.accepted
    assert commit.verdict.error < 0.5
    truth = F.conv2d(x.double(), model.weight.double(), model.bias.double(), padding=3, groups=6)
    unit = torch.finfo(dtype).eps / 2
    folded = apply(result.graph, FoldConstants()).graph.to_module()(x)
    assert folded.dtype == dtype
    assert (folded.double() - truth).norm() <= 16 * unit * truth.norm()


def test_a_kernel_that_is_not_separable_is_refused_with_numbers():
    model, x = nn.Conv2d(6, 6, 5, padding=2, groups=6).eval(), torch.randn(2, 6, 10, 10)
    result = rewrite(model, SeparateKernel(), x)
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.reason == (
        "its kernel has rank 5, and two convolutions of that rank take 0.03 million multiply-accumulates instead of "
        "0.015"
    )
    assert refused.remedy == "train it with kernels of rank 2 at most"
    assert len(rewrite(plant(model, 2), SeparateKernel(), x).record.commits) == 1
    assert not rewrite(plant(model, 3), SeparateKernel(), x).record.commits


def test_a_small_part_of_a_kernel_may_be_all_that_meets_the_image():
    """On an image of one row only the middle row of the kernel counts, and the factors round that of the whole."""
    model = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False).double().eval()
    with torch.no_grad():
        model.weight.zero_()
        model.weight[..., 2] = torch.randn(4, 1, 5, dtype=DOUBLE)
        model.weight[:, :, 2] = 1e-6 * torch.randn(4, 1, 5, dtype=DOUBLE)
    assert len(rewrite(model, SeparateKernel(), torch.randn(2, 4, 1, 9, dtype=DOUBLE)).record.commits) == 1


def test_one_channel_of_full_rank_decides():
    model = plant(nn.Conv2d(6, 6, 5, padding=2, groups=6), 1)
    with torch.no_grad():
        model.weight[3].normal_(std=1e-4)
    assert not rewrite(model, SeparateKernel(), torch.randn(2, 6, 10, 10)).record.commits


def test_nearly_separable_is_not_separable():
    """A relative change of a thousandth is no rounding."""
    model = plant(nn.Conv2d(6, 6, 5, padding=2, groups=6), 1)
    with torch.no_grad():
        model.weight.mul_(1 + 1e-3 * torch.randn_like(model.weight))
    assert not rewrite(model, SeparateKernel(), torch.randn(2, 6, 10, 10)).record.commits


def test_the_bound_is_each_output_channels_own():
    """A small output channel of a dense kernel is no rounding error of the others."""
    model = plant(nn.Conv2d(6, 8, 3, padding=1).double(), 2)
    with torch.no_grad():
        model.weight[5].normal_(std=1e-9)
    matrices = model.weight.permute(1, 2, 0, 3).reshape(1, 18, 24)
    rank = numerical_rank(matrices, torch.float32, lambda s: s.unflatten(2, (8, 3)).sum(3)[0])
    assert rank == 5
    assert numerical_rank(matrices, torch.float32, lambda s: s.sum(2).T) == 2


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_stays_before_it(mode: str):
    model = plant(nn.Conv2d(6, 6, 5, padding=2, groups=6, padding_mode=mode).double(), 1)
    x = torch.randn(2, 6, 9, 8, dtype=DOUBLE)
    result = rewrite(model, SeparateKernel(), x)
    assert len(result.record.commits) == 1
    assert_exact(result, model, x)


def test_the_cost_is_what_is_offered():
    graph = capture(plant(nn.Conv2d(6, 6, 7, padding=3, groups=6), 1), (torch.randn(2, 6, 12, 12),)).graph
    [offer] = offers_in(graph, [SeparateKernel()], MatchVerifier())
    assert offer.before.flops == 2 * 6 * 144 * 49
    assert offer.after.flops == 2 * 6 * 144 * 14
    assert offer.before == work(graph.calls(), Sizes(graph))


def reasons(model: nn.Module, x: Tensor) -> list[str]:
    result = rewrite(model.eval(), SeparateKernel(), x)
    assert not result.record.commits
    return result.reasons


def test_other_convolutions_are_no_misses():
    x = torch.randn(2, 4, 6, 6)
    for layer in (nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (3, 1)), nn.Conv2d(4, 4, 2, groups=4)):
        assert not reasons(layer, x)
    assert not reasons(nn.Conv1d(4, 4, 3), x[..., 0])
    assert not reasons(nn.Conv3d(4, 4, 3), x[..., None].expand(-1, -1, -1, -1, 4))


def test_what_is_refused():
    x = torch.randn(2, 4, 6, 6)
    infinite = nn.Conv2d(4, 4, 3, groups=4)
    with torch.no_grad():
        infinite.weight[0, 0, 0, 0] = torch.inf
    assert reasons(infinite, x) == ["its kernel is infinite or NaN"]
    assert reasons(nn.ConvTranspose2d(4, 4, 3), x) == ["the convolution is transposed"]
    assert reasons(nn.Conv2d(4, 4, 3), x[0]) == ["the convolution's input has no batch dimension"]
    assert reasons(nn.Conv2d(4, 4, 3, dtype=torch.complex64), x.to(torch.complex64)) == [
        "its values are torch.complex64"
    ]
    moving = Block(lambda self, x: F.conv2d(x, x[:, :, :3, :3]))
    assert reasons(moving, x) == ["the kernel depends on the input"]


def test_the_model_is_rewritten_anew_when_its_weights_change():
    model, x = plant(nn.Conv2d(6, 6, 5, padding=2, groups=6), 1), torch.randn(2, 6, 9, 8)
    fast = optimize(model, x, pipeline=Pipeline((SeparateKernel(), FoldConstants())), lower="eager")
    torch.testing.assert_close(fast(x), model(x))
    with torch.no_grad():
        model.weight.normal_()
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(fast(x), model(x))


def test_both_factors_are_equally_large():
    """So that neither leaves the range of a short dtype."""
    model = plant(nn.Conv2d(6, 6, 5, padding=2, groups=6), 1)
    result = rewrite(model, SeparateKernel(), torch.randn(2, 6, 9, 8))
    first, second = (result.graph.value(layer.weight).flatten(1).norm(dim=1) for layer in result.layers)
    torch.testing.assert_close(first, second)


def test_both_factors_are_of_one_decomposition():
    """Each is folded by itself. A box filter has equal singular values in every direction but one."""
    kernels = torch.ones(6, 1, 5, 5)
    model = nn.Conv2d(6, 6, 5, padding=2, groups=6).eval()
    with torch.no_grad():
        model.weight.copy_(kernels)
    x = torch.randn(2, 6, 9, 8)
    result = rewrite(model, SeparateKernel(), x)
    result = apply(result.graph, FoldConstants())
    torch.testing.assert_close(result.graph.to_module()(x), model(x))
