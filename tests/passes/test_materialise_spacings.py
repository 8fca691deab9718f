"""Kernels with learned spacings are built once, by the module's own code, in each of its versions and dimensions."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models import load
from examples.models.dcls import DclsConv, Version
from rewrite.result import OptimizedModule
from tests.passes.materialising import (
    assert_folds,
    assert_follows,
    assert_holds,
    assert_same,
    fold,
    operators,
    run,
    seeded,
)
from tests.passes.rewriting import scatter
from tests.programs import same_bits

VERSIONS: tuple[Version, ...] = ("v0", "v1", "max", "gauss")


def layer(version: Version, dims: int, **options: object) -> DclsConv:
    """A grouped layer with a kernel of another size in each dimension, of which one is even."""
    conv = DclsConv(4, 6, (5, 4, 3)[:dims], 3, version=version, groups=2, **options)  # type: ignore[arg-type]
    nn.init.normal_(conv.bias)
    if conv.spread is not None:
        nn.init.normal_(conv.spread)
    return conv


def signal(dims: int) -> Tensor:
    return torch.randn(2, 4, *(7, 6, 5)[:dims])


def kernel_of(fast: OptimizedModule) -> Tensor:
    """The folded kernel of a program with one convolution."""
    (name,) = [name for name, _ in fast.graph_module.named_buffers() if name.startswith("folded")]
    return fast.graph_module.get_buffer(name)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_is_folded_to_the_bit(version: Version, dims: int) -> None:
    assert_folds(lambda: layer(version, dims), signal(dims), left=[f"conv{dims}d"])


@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_the_kernel_follows_its_weights_and_positions(version: Version) -> None:
    assert_follows(lambda: layer(version, 2), signal(2))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_keep_their_pad(mode: str) -> None:
    assert_folds(lambda: layer("v1", 2, padding_mode=mode, stride=2), signal(2), left=["pad", "conv2d"])


# -- what the folded kernel is, by rules that are not the module's code ------------------------------------------------


@functools.cache
def single(version: Version, size: tuple[int, ...]) -> tuple[DclsConv, OptimizedModule]:
    """A layer with one channel and two weights, and its program."""
    conv = DclsConv(1, 1, size, 2, version=version, bias=False).eval()
    return conv, fold(conv, torch.randn(1, 1, *size))


def placed(version: Version, *positions: tuple[float, float], size: tuple[int, ...] = (5, 7)) -> Tensor:
    """The folded kernel with a weight 1 at each of one or two positions (first, second)."""
    conv, fast = single(version, size)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[..., : len(positions)] = 1.0
        conv.positions.zero_()
        conv.positions[..., : len(positions)] = torch.tensor(positions).T.reshape(2, 1, 1, -1)
    run(fast, torch.randn(1, 1, *size))
    return kernel_of(fast)[0, 0]


def test_whole_positions_are_taps() -> None:
    kernel = placed("v0", (-2, 0), (1, 3))
    expected = torch.zeros(5, 7)
    expected[0, 3] = expected[3, 6] = 1
    assert torch.equal(kernel, expected)


def test_a_position_between_taps_is_split_over_four() -> None:
    kernel = placed("v0", (0.25, -0.5))
    expected = torch.zeros(5, 7)
    expected[2:4, 2:4] = torch.outer(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
    assert torch.equal(kernel, expected)


def test_versions_disagree_about_which_position_is_the_row() -> None:
    """As in the published code: the oldest version moves rows by the first, the others columns, from its own centre."""
    assert placed("v0", (1, 0)).nonzero().tolist() == [[3, 3]]
    # the first position counts from the middle of the rows, 2, and moves along the columns, whose middle is 3
    assert placed("v1", (1, 0)).nonzero().tolist() == [[3, 3]]
    assert placed("v1", (1, 1)).nonzero().tolist() == [[4, 3]]
    assert placed("v0", (1, 1)).nonzero().tolist() == [[3, 4]]


def test_beyond_the_edge_the_oldest_version_loses_what_the_others_keep() -> None:
    assert placed("v0", (2.5, 0), size=(5, 5)).sum() == 0.5
    torch.testing.assert_close(placed("v1", (2.5, 0), size=(5, 5)).sum(), torch.tensor(1.0))


@pytest.mark.parametrize("version", ["v1", "max", "gauss"])
def test_normalized_shapes_keep_the_sum_of_the_weights(version: Version) -> None:
    conv = seeded(lambda: layer(version, 2), 3)
    kernel = kernel_of(fold(conv, signal(2)))
    torch.testing.assert_close(kernel.sum((2, 3)), conv.weight.sum(-1).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_narrow_shapes_are_sparse(version: Version) -> None:
    torch.manual_seed(0)
    conv = DclsConv(2, 2, (9, 9), 4, version=version).eval()
    kernel = kernel_of(fold(conv, torch.randn(1, 2, 9, 9)))
    assert 0 < (kernel[0, 0] != 0).sum() <= 4 * 4


@pytest.mark.parametrize("version", VERSIONS)
def test_the_impulse_response_is_the_folded_kernel(version: Version) -> None:
    torch.manual_seed(0)
    conv = DclsConv(1, 1, (5, 4), 3, version=version, bias=False, padding=(4, 3)).eval()
    kernel = kernel_of(fold(conv, torch.ones(1, 1, 1, 1)))[0, 0]
    with torch.no_grad():
        response = conv(torch.ones(1, 1, 1, 1))[0, 0]
    torch.testing.assert_close(response, kernel.flip(0, 1))


# -- among other rewrites ---------------------------------------------------------------------------------------------


def test_a_batch_norm_folds_into_the_kernel_that_was_built() -> None:
    torch.manual_seed(0)
    model = scatter(nn.Sequential(layer("gauss", 2), nn.BatchNorm2d(6)))
    fast = assert_holds(model, signal(2))
    assert operators(fast) == ["conv2d"]
    twice = fold(model, signal(2), pipeline="fold-constants, fold-batch-norm, fold-constants")
    assert operators(twice) == ["conv2d"]
    # the kernel is not rounded in between
    assert same_bits(*([*each.graph_module.buffers()] for each in (fast, twice)))
    with torch.no_grad():
        model[0].positions.add_(0.25)
        model[1].running_var.mul_(2)
    x = signal(2)
    for each in (fast, twice):
        torch.testing.assert_close(run(each, x)[0], run(model, x)[0], rtol=1e-4, atol=1e-5)


class LazyGrid(nn.Module):
    """Keeps the grid of taps as a plain attribute from the first call on, as the published code does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.positions = nn.Parameter(torch.randn(3))
        self.taps: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            self.taps = torch.arange(7, device=self.positions.device)[:, None] - 3
        kernel = ((1 - (self.taps - self.positions).abs()).relu() * self.weight).sum(-1)
        return F.conv1d(x, kernel.view(1, 1, -1), padding=3)


@pytest.mark.parametrize("warm", [False, True])
def test_a_grid_that_is_made_at_the_first_call(warm: bool) -> None:
    x = torch.randn(2, 1, 9)
    fast = assert_folds(LazyGrid, x, left=["conv1d"], warm=warm)
    model = seeded(LazyGrid, 5)
    fold(model, x)
    assert model.taps is None
    assert fast is not None


def test_positions_of_a_stage_are_shared_and_followed() -> None:
    model, inputs = load("dcls_convnext")
    fast = fold(model, *inputs)
    kernels = [name for name, _ in fast.graph_module.named_buffers() if name.startswith("folded") and "mix" in name]
    assert len(kernels) == 3
    assert not {"arange", "prod", "relu"} & set(operators(fast))
    assert_same(fast, model, *inputs)
    positions = model.stages[2].mix.positions
    assert positions is model.stages[3].mix.positions
    optimizer = torch.optim.SGD([positions], lr=0.1)
    model(*inputs)[0].sum().backward()
    optimizer.step()
    assert_same(fast, model, *inputs)
