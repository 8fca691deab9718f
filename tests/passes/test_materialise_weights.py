"""Weights that a module computes before it uses them: norms, standardization, products, gathers from tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from examples.models.doconv import DOConv
from rewrite import zoo
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

zoo.timm()  # from here on timm can be imported whatever torchvision there is

from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame  # noqa: E402
from timm.models.nfnet import NfCfg, NormFreeNet  # noqa: E402
from timm.models.resnetv2 import ResNetV2  # noqa: E402
from timm.models.swin_transformer import SwinTransformer  # noqa: E402

X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def old(norm: Callable[..., nn.Module], module: nn.Module, **options: object) -> nn.Module:
    """A module normalized by a function of torch that is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(module, **options)


NORMALIZED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "weight norm along another dimension": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3), dim=1),
    "old weight norm": lambda: old(nn.utils.weight_norm, nn.Conv2d(4, 6, 3)),
    "old weight norm of all": lambda: old(nn.utils.weight_norm, nn.Conv2d(4, 6, 3), dim=None),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)),
    "old spectral norm": lambda: old(nn.utils.spectral_norm, nn.Conv2d(4, 6, 3)),
    "standardized": lambda: StdConv2d(4, 6, 3),
    "standardized and scaled": lambda: ScaledStdConv2d(4, 6, 3),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_normalized_weights_are_folded_to_the_bit(name: str) -> None:
    assert_folds(NORMALIZED[name], X, left=["conv2d"])


@pytest.mark.parametrize("layer", [StdConv2dSame, ScaledStdConv2dSame])
def test_standardized_weights_behind_a_pad(layer: Callable[..., nn.Module]) -> None:
    assert_folds(lambda: layer(4, 6, 3, stride=2), X, left=["pad", "conv2d"])


@pytest.mark.parametrize("name", ["weight norm", "standardized and scaled"])
def test_normalized_weights_follow_their_parameters(name: str) -> None:
    assert_follows(NORMALIZED[name], X)


def test_old_weight_norm_follows_its_parameters() -> None:
    """Its weight is a plain attribute that a hook assigns, which no copy of torch's own takes."""
    model = seeded(NORMALIZED["old weight norm"], 0)
    fast = fold(model, X)
    with torch.no_grad():
        model.weight_g.mul_(1.5)
    assert_same(fast, model, X)


def test_standardization_of_weights_is_no_batch_norm_that_was_missed() -> None:
    fast = assert_holds(seeded(NORMALIZED["standardized"], 0), X)
    assert not fast.report.refusals()


def test_a_parametrization_that_is_taken_off_leaves_the_same_weights() -> None:
    model = seeded(NORMALIZED["weight norm"], 0)
    fast = fold(model, X)
    expected = run(fast, X)
    nn.utils.parametrize.remove_parametrizations(model, "weight")
    torch.testing.assert_close(run(fast, X), expected)
    assert operators(fast) == ["conv2d"]


# -- products ---------------------------------------------------------------------------------------------------------


PRODUCTS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "dense": (lambda: DOConv(4, 6), ["conv2d"]),
    "grouped": (lambda: DOConv(4, 6, groups=2), ["conv2d"]),
    "depthwise": (lambda: DOConv(4, 8, groups=4), ["conv2d"]),
    "wider than the kernel": (lambda: DOConv(4, 6, factor=13, stride=2), ["conv2d"]),
    "reflected": (lambda: DOConv(4, 6, padding_mode="reflect"), ["pad", "conv2d"]),
    "circular": (lambda: DOConv(4, 6, 5, padding_mode="circular"), ["pad", "conv2d"]),
    "pointwise": (lambda: DOConv(4, 6, 1), ["conv2d"]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_multiplied_out_to_the_bit(name: str) -> None:
    make, left = PRODUCTS[name]
    assert_folds(make, X, left=left)


def test_products_follow_both_factors() -> None:
    assert_follows(lambda: DOConv(4, 6, groups=2), X)


def test_the_product_is_a_convolution_written_out() -> None:
    """Against the definition: each place of the kernel is a mixture of the trained taps of its input channel."""
    conv = seeded(lambda: DOConv(4, 6, groups=2, factor=11), 0).double()
    fast = fold(conv, X.double())
    kernel = torch.zeros(6, 2, 9, dtype=torch.float64)
    weight = conv.weight.detach().reshape(3, 4, 11)  # as the published code shares it out over the groups
    mixing = (conv.depth + conv.identity).detach()
    for o in range(3):
        for i in range(4):
            kernel.view(3, 4, 9)[o, i] = mixing[i] @ weight[o, i]
    expected = F.conv2d(X.double(), kernel.unflatten(-1, (3, 3)), padding=1, groups=2)
    torch.testing.assert_close(run(fast, X.double())[0], expected)


def test_a_batch_norm_behind_a_product_folds_too() -> None:
    torch.manual_seed(0)
    model = scatter(nn.Sequential(DOConv(4, 6), nn.BatchNorm2d(6)))
    assert operators(assert_holds(model, X)) == ["conv2d"]


# -- whole networks ---------------------------------------------------------------------------------------------------


def bit() -> nn.Module:
    """A small BiT: standardized convolutions, group norms, activation before them."""
    return ResNetV2((1,), (128,), num_classes=5, stem_chs=32, stem_type="fixed", conv_layer=StdConv2d)


def norm_free() -> nn.Module:
    """A small network without norms: scaled standardized convolutions with gains."""
    config = NfCfg((1, 1, 1, 1), (16, 16, 16, 16), stem_type="3x3", stem_chs=8, gamma_in_act=True, act_layer="relu")
    return NormFreeNet(config, num_classes=5)


@pytest.mark.parametrize("make", [bit, norm_free])
def test_networks_of_standardized_convolutions(make: Callable[[], nn.Module]) -> None:
    model = seeded(make, 0)
    fast = fold(model, IMAGE)
    assert not {"batch_norm", "_native_batch_norm_legit", "native_batch_norm", "var_mean"} & set(operators(fast))
    assert_same(fast, model, IMAGE)
    convolutions = operators(fast).count("conv2d")
    folded = [name for name, _ in fast.graph_module.named_buffers() if name.startswith("folded")]
    assert len(folded) >= convolutions - 1  # all but the head of one
    model.load_state_dict(seeded(make, 1).state_dict())
    assert_same(fast, model, IMAGE)


def swin() -> nn.Module:
    """Two small Swin blocks, one of them shifted."""
    return SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_classes=5
    )  # fmt: skip


def test_relative_position_biases_are_gathered_once() -> None:
    model = seeded(swin, 0)
    fast = fold(model, IMAGE)
    assert not {"index", "gather", "arange"} & set(operators(fast))
    assert_same(fast, model, IMAGE)
    biases = [buffer for _, buffer in fast.graph_module.named_buffers() if buffer.shape[-3:] == (2, 16, 16)]
    assert len(biases) == 2
    with torch.no_grad():
        model.layers[0].blocks[1].attn.relative_position_bias_table.normal_()
    assert_same(fast, model, IMAGE)
    assert not assert_holds(model, IMAGE).report.refusals()


class Absolute(nn.Module):
    """A table of positions that is resized for the number of tokens, and an index that is made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.offsets = nn.Parameter(torch.randn(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        place = torch.arange(size, device=x.device)
        index = (place[:, None] - place[None]).clamp(-4, 4) + 4
        bias = self.offsets[index].permute(2, 0, 1)
        positions = F.interpolate(self.table, (size, size), mode="bicubic")
        return x + positions.unflatten(1, (2, 3)).sum(1) + bias


def test_resized_tables_and_indices_made_in_forward() -> None:
    x = torch.randn(2, 3, 7, 7)
    fast = assert_folds(Absolute, x, left=["add", "add"])
    model = seeded(Absolute, 2)
    assert_same(fast, model, x)
    assert_same(fold(model, x), model, torch.randn(2, 3, 5, 5))
