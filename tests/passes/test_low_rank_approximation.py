"""Chains of low rank against planted ones, and against least squares over explicit patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.low_rank_approximation import LowRank, patches, regression, rule
from passes.low_rank_approximation.chain import Shape
from passes.low_rank_approximation.patches import Patches
from passes.low_rank_approximation.regression import of_patches
from rewrite.flops import Sizes
from rewrite.ops import Convolution, view_as
from rewrite.trace import capture
from tests.passes.approximating import Offered, by_form, offered, relative, smooth

DOUBLE = torch.float64
ALL = 1000
FORMS = ("channel", "spatial", "tucker", "cp")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def unshrunk(trace: Tensor, *_: Any) -> Tensor:
    return torch.full_like(trace, 1e-9)


def plant(conv: Any, form: str, rank: int) -> Any:
    """The convolution of two dimensions with weights of a form, for each group."""
    groups, (out, c, k1, k2) = conv.groups, conv.weight.shape
    o = out // groups
    parts = {
        "channel": ("gor,grcij->gocij", (o, rank), (rank, c, k1, k2)),
        "spatial": ("gorj,grci->gocij", (o, rank, k2), (rank, c, k1)),
        "spatial, rows first": ("gori,grcj->gocij", (o, rank, k1), (rank, c, k2)),
        "tucker": ("gor,grsij,gsc->gocij", (o, rank), (rank, rank + 1, k1, k2), (rank + 1, c)),
        "cp": ("gor,grc,gri,grj->gocij", (o, rank), (rank, c), (rank, k1), (rank, k2)),
    }
    formula, *shapes = parts[form]
    product = torch.einsum(formula, *(torch.randn(groups, *shape, dtype=DOUBLE) for shape in shapes))
    with torch.no_grad():
        conv.weight.copy_((product / product.std()).reshape(conv.weight.shape))
    return conv


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "strides and dilations": {"kernel_size": 3, "padding": (0, 2), "stride": (1, 2), "dilation": (2, 1)},
    "even, padded by name": {"kernel_size": 4, "padding": "same", "dilation": 3},
    "rectangular": {"kernel_size": (2, 5), "padding": (1, 0)},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "without bias": {"kernel_size": 3, "bias": False},
}


def conv_of(geometry: str, inputs: int = 8, outputs: int = 12) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, dtype=DOUBLE, **GEOMETRIES[geometry])


@pytest.mark.parametrize("form", [*FORMS, "spatial, rows first"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_planted_layers_are_recovered(geometry: str, form: str):
    """By the rank that was planted, on data that they were not fitted to."""
    layer, rank = plant(conv_of(geometry), form, 2), 2
    rule = LowRank(forms=form.partition(",")[0], ranks=ALL, least=1e-9)
    found = [each for each in offered(layer, rule, smooth(4, 8, 14, 14))
             if int(each.option.text.split()[-1]) == rank]  # fmt: skip
    [each] = found
    x = torch.randn(3, 8, 11, 15, dtype=DOUBLE)
    allowed = 1e-2 if form == "cp" else 1e-6  # alternating least squares end before
    assert relative(each(x), layer(x)) < allowed
    assert each.option.error < allowed


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_errors_are_predicted_exactly(geometry: str):
    layer = conv_of(geometry, 6, 9 if geometry != "groups" else 10)
    x = [smooth(2, 6, 12, 10) + 1, smooth(3, 6, 12, 10)]
    found = offered(layer, LowRank(ranks=4), *x)
    assert {each.form for each in found} == set(FORMS)
    both = torch.cat(x)
    for each in found:
        assert each.option.error == pytest.approx(relative(each(both), layer(both)), rel=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(6, 9, 5, stride=2, padding=1, dilation=2), (4, 6, 40)),
        (nn.Conv2d(6, 9, (1, 3), stride=2), (4, 6, 20, 20)),
        (nn.Conv2d(6, 40, 1, stride=2, padding=1), (4, 6, 9, 9)),
        (nn.Conv2d(40, 6, 1, groups=2), (4, 40, 9, 9)),
        (nn.Conv3d(6, 6, (3, 1, 2), stride=(1, 2, 1)), (3, 6, 5, 7, 6)),
        (nn.Linear(12, 40), (3, 7, 12)),
        (nn.Linear(40, 12, bias=False), (3, 5, 7, 40)),
        (nn.Linear(40, 12), (60, 40)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value),
)
def test_other_layers(layer: nn.Module, shape: tuple[int, ...]):
    """Errors are predicted exactly, and fall with the rank."""
    layer, x = layer.double(), torch.randn(shape, dtype=DOUBLE) + 0.5
    found = offered(layer, LowRank(ranks=5), x)
    expected = {"channel", "tucker", "cp"} if not isinstance(layer, nn.Linear) and max(layer.kernel_size) > 1 else {
        "channel"}  # fmt: skip
    assert {each.form for each in found} == expected
    for each in found:
        assert each.option.error == pytest.approx(relative(each(x), layer(x)), rel=1e-6)
    for form, some in by_form(found):
        errors = [each.option.error for each in some]
        assert form == "cp" or errors == sorted(errors, reverse=True)


def rows_of(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``[samples, features]``, what a convolution with padding in numbers reads at once."""
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT.flatten(0, 1)


def left_by(rows: Tensor, outputs: Tensor, rank: int | None = None) -> float:
    """The norm of what linear least squares with a constant leave of outputs, the fit being of a rank."""
    rows, outputs = rows - rows.mean(0), outputs - outputs.mean(0)
    fit = rows @ torch.linalg.lstsq(rows, outputs, driver="gelsd").solution
    if rank is not None:
        u, s, vh = torch.linalg.svd(fit, full_matrices=False)
        fit = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return float((outputs - fit).norm())


def test_fits_are_least_squares(monkeypatch: pytest.MonkeyPatch):
    """Given what each chain makes of the input first, nothing behind it does better on the data, but for shrinkage."""
    monkeypatch.setattr(regression, "_shrinkage", unshrunk)
    layer = nn.Conv2d(5, 7, 3, stride=(2, 1), padding=1, dtype=DOUBLE)
    x = smooth(40, 5, 12, 12)
    y = layer(x).detach()
    outputs = y.transpose(0, 1).flatten(1).T
    for each in offered(layer, LowRank(ranks=3), x):
        weights = [weight.detach() for weight in each.weights]
        if each.form == "channel":
            best = left_by(rows_of(layer, x), outputs, weights[0].shape[0])
        elif each.form == "tucker":
            few = F.conv2d(x, weights[0])
            best = left_by(rows_of(layer, few), outputs, weights[1].shape[0])
        elif each.form == "spatial":
            middle, second = F.conv2d(x, weights[0], stride=(2, 1), padding=(1, 0)), nn.Conv2d(1, 1, (1, 3))
            second.padding = (0, 1)
            best = left_by(rows_of(second, middle), outputs)
        else:
            rank = len(weights[0])
            middle = F.conv2d(F.conv2d(x, weights[0]), weights[1], stride=(2, 1), padding=(1, 0), groups=rank)
            middle = F.conv2d(middle, weights[2], padding=(0, 1), groups=rank)
            best = left_by(middle.transpose(0, 1).flatten(1).T, outputs)
        assert each.option.error == pytest.approx(best / float(outputs.norm()), rel=1e-5), each.option.text


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def plain(weight: Tensor, each: Offered) -> Tensor:
    """The kernel of an option's form and rank that is nearest without data: truncated singular value decompositions."""
    o, c, k1, k2 = weight.shape
    if each.form == "channel":
        return truncated(weight.flatten(1), each.weights[1].shape[1]).reshape(weight.shape)
    if each.form == "spatial":
        matrix = weight.permute(1, 2, 0, 3).reshape(c * k1, o * k2)
        return truncated(matrix, each.weights[1].shape[1]).reshape(c, k1, o, k2).permute(2, 0, 1, 3)
    few, many = each.weights[1].shape[1], each.weights[1].shape[0]
    u = torch.linalg.svd(weight.flatten(1), full_matrices=False)[0][:, :many]
    v = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :few]
    return torch.einsum("op,qp,qdij,de,ce->ocij", u, u, weight, v, v)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
def test_data_says_what_matters(form: str):
    """On smooth inputs the error is far below that of the nearest kernel of the same rank."""
    layer = nn.Conv2d(12, 12, 5, padding=2, dtype=DOUBLE)
    fit, x = smooth(24, 12, 16, 16).chunk(2)
    found = offered(layer, LowRank(forms=form, ranks=4, least=0.3), fit)
    for each in found:
        nearest = F.conv2d(x, plain(layer.weight.detach(), each), layer.bias, padding=2)
        assert relative(each(x), layer(x)) < relative(nearest, layer(x)) / 1.3, each.option.text


@pytest.mark.parametrize("form", ["spatial", "tucker"])
def test_data_says_what_is_kept_of_the_input(form: str):
    """Less is wrong than with the first kernels that are the nearest without data, and the best behind them."""
    layer = nn.Conv2d(12, 12, 3, padding=1, dtype=DOUBLE)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(1.5, 0, 12, dtype=DOUBLE)[:, None, None].flip(0))  # against what the data has
    x = smooth(12, 12, 16, 16)
    outputs = layer(x).detach().transpose(0, 1).flatten(1).T
    weight, ratios = layer.weight.detach(), []
    for each in offered(layer, LowRank(forms=form, ranks=4, least=0.3), x):
        first, rank = each.weights[0].detach(), each.weights[1].shape[0]
        axes = (1, 2) if first.shape[2] > 1 else (1, 3) if first.shape[3] > 1 else (1,)
        moved = weight.movedim(axes, tuple(range(len(axes)))).flatten(len(axes)).flatten(0, len(axes) - 1)
        basis = torch.linalg.svd(moved, full_matrices=False)[0][:, : len(first)]
        middle = F.conv2d(x, basis.T.reshape(first.shape), padding=[n // 2 for n in first.shape[2:]])
        behind = nn.Conv2d(1, 1, each.weights[1].shape[2:], padding=[n // 2 for n in each.weights[1].shape[2:]])
        best = left_by(rows_of(behind, middle), outputs, rank) / float(outputs.norm())
        ratios.append(each.option.error / best)
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.9


@pytest.mark.parametrize("groups", [1, 2])
def test_errors_fall_with_the_rank(groups: int):
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, dtype=DOUBLE)
    found = offered(layer, LowRank(forms="channel spatial tucker", ranks=ALL, least=1e-9), smooth(30, 8, 10, 10))
    for _, some in by_form(found):
        errors = [each.option.error for each in some]
        assert len(errors) > 1
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (6, 4), (2, 30)])
def test_full_rank_is_exact(form: str, inputs: int, outputs: int):
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, dtype=DOUBLE).eval()
    x = torch.randn(6, inputs, 9, 9, dtype=DOUBLE) + 1
    graph = capture(layer, (x,)).graph
    conv = view_as(next(iter(graph.calls())), Convolution)
    shape = Shape.of(conv, Sizes(graph))
    seen = Patches(conv, 1, shape.features)
    seen.add(x)
    metric = of_patches(layer.weight.detach()[None], layer.bias.detach()[None], seen, DOUBLE)
    [fit] = rule.FORMS[form](metric, shape, lambda full, chain: [full])
    y = x
    for weight in fit.weights:
        padding = [size // 2 for size in weight.shape[3:]]
        y = F.conv2d(y, weight[0], padding=padding)
    assert relative(y + (layer.bias + fit.shift[0])[:, None, None], layer(x)) < 1e-7
    assert fit.error < 1e-7
    assert fit.shift.abs().max() < 1e-7


def test_the_bias_takes_what_the_mean_makes():
    layer, x = nn.Conv2d(8, 8, 3, bias=False, dtype=DOUBLE), smooth(6, 8, 12, 12)
    shifted = x / x.std() + 5
    for each in offered(layer, LowRank(ranks=2), shifted):
        [bias] = [tensor for name, tensor in each.fragment.constants.items() if name.endswith("bias")]
        y = each(shifted)
        without = y - bias[:, None, None]
        assert relative(without, layer(shifted)) > 2 * relative(y, layer(shifted)), each.option.text
        assert torch.allclose(y.mean((0, 2, 3)), layer(shifted).mean((0, 2, 3)), atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_dead_channels_are_kept(form: str):
    """What the data never shows is approximated as weights are: also a term that reads channels of zeros alone."""
    layer, other = (plant(nn.Conv2d(8, 12, 3, padding=1, dtype=DOUBLE), form, 1) for _ in range(2))
    with torch.no_grad():
        layer.weight[:, ::3] = other.weight[:, ::3]
    x = smooth(4, 8, 12, 12)
    x[:, ::3] = 0
    found = offered(layer, LowRank(forms=form, ranks=ALL, least=1e-9), x)
    [each] = [each for each in found if int(each.option.text.split()[-1]) == 2]
    alive = torch.randn(4, 8, 12, 12, dtype=DOUBLE)
    assert relative(each(alive), layer(alive)) < (0.05 if form == "cp" else 1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_inputs(value: float):
    """There is nothing to fit to, and the mean says all."""
    layer, x = nn.Conv2d(8, 8, 3, dtype=DOUBLE), torch.full((2, 8, 9, 9), value, dtype=DOUBLE)
    found = offered(layer, LowRank(), x)
    assert {each.form for each in found} == set(FORMS)
    for each in found:
        assert relative(each(x), layer(x)) < 1e-9
        assert each.option.error < 1e-6


def test_few_patches_are_not_believed(monkeypatch: pytest.MonkeyPatch):
    """Shrunk moments leave less wrong on other data, far less where there are fewer patches than features."""
    layer, data = nn.Conv2d(16, 16, 3, padding=1, dtype=DOUBLE), smooth(20, 16, 8, 8)
    few, x = data[:1], data[1:]

    def errors() -> list[float]:
        return [relative(each(x), layer(x)) for each in offered(layer, LowRank(forms="spatial", ranks=3), few)]

    shrunk = errors()
    monkeypatch.setattr(regression, "_shrinkage", unshrunk)
    believed = errors()
    assert all(a < b for a, b in zip(shrunk, believed, strict=True))
    assert shrunk[-1] < 0.6 * believed[-1]


def test_moments(monkeypatch: pytest.MonkeyPatch):
    """Of patches that are unfolded by torch, however few are taken at a time, and in float32 where there are many."""
    layer = nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2, dtype=DOUBLE).eval()
    x = [smooth(n, 4, 7, 9) + 3 for n in (2, 3)]
    rows = torch.cat([rows_of(layer, part) for part in x]).reshape(-1, 2, 12).transpose(0, 1)
    centred = rows - rows.mean(1, keepdim=True)
    expected = centred.mT @ centred / rows.shape[1]
    graph = capture(layer, (x[0],)).graph
    conv = view_as(next(iter(graph.calls())), Convolution)
    for chunk, double, allowed in ((2**22, 2500, 1e-12), (100, 2500, 1e-12), (400, 2500, 1e-12), (400, 0, 1e-5)):
        monkeypatch.setattr(patches, "_CHUNK", chunk)
        monkeypatch.setattr(patches, "DOUBLE", double)
        seen = Patches(conv, 2, 12)
        for part in x:
            seen.add(part)
        found = torch.cat([part for _, part in seen.covariance()], 1)
        assert seen.count == rows.shape[1]
        assert (found - expected).abs().max() <= allowed * expected.abs().max()
        assert torch.allclose(seen.mean, rows.mean(1), rtol=max(allowed, 1e-12))
        by_axes = expected.reshape(2, 2, 3, 2, 2, 3, 2)
        within = torch.einsum("gcijdkj->gcidk", by_axes).reshape(2, 6, 6)
        assert torch.allclose(seen.within((2, 3, 2), (0, 1)), within, rtol=1e-4, atol=allowed)
        across = torch.einsum("gcijcil->gjl", by_axes)
        assert torch.allclose(seen.within((2, 3, 2), (2,)), across, rtol=1e-4, atol=allowed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype: torch.dtype):
    """Sides hold terms of equal norms, so that none leaves the range of the dtype."""
    layer = nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
    layer, x = layer.to(dtype), (smooth(4, 8, 12, 12) * 100).to(dtype)
    wanted = layer.double()(x.double())
    layer.to(dtype)
    for each in offered(layer, LowRank(ranks=3), x):
        y = each(x)
        assert y.dtype == dtype
        assert relative(y, wanted) < each.option.error + 20 * torch.finfo(dtype).eps, each.option.text
        first, second = each.weights[:2]
        second = second.transpose(0, 1) if each.form != "cp" else second
        ratio = first.double().flatten(1).norm(dim=1) / second.double().flatten(1).norm(dim=1)
        assert ((ratio > 1 / 3) & (ratio < 3)).all(), each.option.text
        assert math.isfinite(float(y.sum()))
