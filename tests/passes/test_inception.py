"""Inception mixers fitted to data: least squares by another solver, assignments against all others, whole layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes.inception import Inception
from passes.inception.assignment import cheapest, in_numbers
from passes.inception.fitting import energy, fits
from passes.inception.patches import Patches
from passes.inception.supports import Support, supports
from rewrite import approximate
from rewrite.approximation.sites import Site, find_sites, replacement
from rewrite.approximation.trial import Swap, Trial
from rewrite.graph import Graph
from rewrite.ops import Convolution, view_as
from rewrite.trace import capture

GEOMETRIES = {
    "plain": ((5, 5), {"padding": 2}),
    "valid": ((3, 5), {}),
    "stride": ((7, 7), {"padding": 3, "stride": 2}),
    "dilation": ((5, 3), {"padding": (4, 2), "dilation": 2}),
    "even": ((4, 6), {"padding": "same"}),
    "no bias": ((5, 5), {"padding": 2, "bias": False}),
    "wide": ((3, 9), {"padding": (1, 4)}),
}  # fmt: skip


def images(samples: int = 3, channels: int = 4, size: int = 14, seed: int = 0) -> Tensor:
    """Smooth ones that are not about zero."""
    noise = torch.randn(samples, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, 1, 2) * 5 + torch.linspace(-1, 2, channels)[:, None, None]


def layer(kernel: Any, **settings: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 4, kernel, groups=4, **settings)
    with torch.no_grad():
        conv.weight.normal_()
    return conv.eval()


def view_of(model: nn.Module, x: Tensor) -> tuple[Graph, Convolution]:
    graph = capture(model, (x,)).graph
    found = [conv for node in graph.calls() if (conv := view_as(node, Convolution)) is not None]
    return graph, found[0]


def windows(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``[C, samples, taps]``, by reading each output's derivative off the convolution itself."""
    taps = conv.weight[0, 0].numel()
    rows = []
    for tap in range(taps):
        one = torch.zeros_like(conv.weight).flatten(1)
        one[:, tap] = 1
        weight = one.reshape(conv.weight.shape).double()
        y = F.conv2d(x.double(), weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        rows.append(y.transpose(0, 1).flatten(1))
    return torch.stack(rows, 2)


def seen(conv: nn.Conv2d, x: Tensor) -> tuple[Convolution, Patches]:
    _, view = view_of(conv, x)
    patches = Patches(view)
    for sample in x.split(2):
        patches.add(sample)
    return view, patches


@pytest.mark.parametrize("name", GEOMETRIES)
def test_moments_are_those_of_the_values_under_the_kernel(name: str) -> None:
    kernel, settings = GEOMETRIES[name]
    conv, x = layer(kernel, **settings), images()
    _, patches = seen(conv, x)
    rows = windows(conv, x)
    torch.testing.assert_close(patches.mean, rows.mean(1))
    torch.testing.assert_close(patches.second(), rows.transpose(1, 2) @ rows / rows.shape[1])
    bias = None if conv.bias is None else conv.bias.detach().double()
    y = conv(x).detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(energy(conv.weight[:, 0].detach().double(), bias, patches), y.square().mean(1),
                               rtol=1e-5, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", GEOMETRIES)
def test_least_squares_are_least_squares(name: str) -> None:
    """Against a solver over all rows, with a column of ones for the bias."""
    kernel, settings = GEOMETRIES[name]
    conv, x = layer(kernel, **settings), images()
    view, patches = seen(conv, x)
    rows, weight = windows(conv, x), conv.weight[:, 0].detach().double()
    for fit in fits(weight, patches, supports(view, 3, 0, 0)):
        assert fit.support.mask is not None
        mask = fit.support.mask.flatten()
        assert not fit.kernel.flatten(1)[:, ~mask].any()
        for c in range(4):
            table = torch.cat([rows[c][:, mask], torch.ones(len(rows[c]), 1)], 1)
            wanted = rows[c] @ weight[c].flatten()
            best = torch.linalg.lstsq(table, wanted, driver="gelsd").solution
            left = float((wanted - table @ best).square().mean())
            assert float(fit.wrong[c]) == pytest.approx(left, rel=1e-4, abs=1e-7)
            mine = rows[c] @ fit.kernel[c].flatten() + fit.shift[c]
            assert float((wanted - mine).square().mean()) == pytest.approx(left, rel=1e-4, abs=1e-7)


def test_separable_kernels_are_near_the_best_and_better_than_truncated_ones() -> None:
    conv, x = layer((5, 5), padding=2), images()
    view, patches = seen(conv, x)
    weight = conv.weight[:, 0].detach().double()
    rows = windows(conv, x)
    found = {fit.support.name: fit for fit in fits(weight, patches, supports(view, 3, 0, 2))}
    u, s, vh = torch.linalg.svd(weight)
    for rank in (1, 2):
        fit = found[f"rank {rank}"]
        assert torch.linalg.matrix_rank(fit.kernel, rtol=1e-9).eq(rank).all()
        cut = (u[:, :, :rank] * s[:, None, :rank]) @ vh[:, :rank]
        plain = (rows @ (weight - cut).flatten(1)[:, :, None])[:, :, 0]
        assert (fit.wrong <= plain.var(1, correction=0) * (1 + 1e-6)).all()
        assert float(fit.wrong.sum()) < 0.8 * float(plain.var(1, correction=0).sum())
    assert (found["rank 2"].wrong <= found["rank 1"].wrong * (1 + 1e-6)).all()


def test_least_squares_are_five_times_better_than_truncation_on_smooth_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 60, 60)
    for _ in range(3):
        x = F.avg_pool2d(x, 7, 1) * 4
    rows = torch.arange(7.0) - 3
    weight = torch.exp(-(rows[:, None].square() + rows[None].square()) / 8).repeat(4, 1, 1).double()
    conv = layer((7, 7))
    with torch.no_grad():
        conv.weight.copy_(weight[:, None])
    view, patches = seen(conv, x)
    found = {fit.support.name: fit for fit in fits(weight, patches, supports(view, 3, 0, 1))}
    mask = found["square"].support.mask
    assert mask is not None
    cut = (windows(conv, x) @ (weight * ~mask).flatten(1)[:, :, None])[:, :, 0].square().mean(1)
    assert (found["square"].wrong.sqrt() * 5 < cut.sqrt()).all()
    assert float(found["rank 1"].wrong.max()) < 1e-9 * float(cut.max())  # a Gaussian is separable


def test_more_taps_leave_less_wrong() -> None:
    conv, x = layer((7, 7), padding=3), images()
    _, patches = seen(conv, x)
    weight = conv.weight[:, 0].detach().double()
    order = torch.randperm(49, generator=torch.Generator().manual_seed(0))
    kinds = []
    for count in (1, 5, 20, 40, 49):
        mask = torch.zeros(49, dtype=torch.bool)
        mask[order[:count]] = True
        kinds.append(Support("some", mask.reshape(7, 7), 0, count))
    wrong = [fit.wrong for fit in fits(weight, patches, kinds)]
    for less, more in itertools.pairwise(wrong):
        assert (more <= less * (1 + 1e-6) + 1e-12).all()
    assert not wrong[-1].any()


def test_dead_and_constant_channels_are_solved() -> None:
    conv, x = layer((5, 5), padding=2), images()
    x[:, 0], x[:, 1] = 0.0, 3.0
    view, patches = seen(conv, x)
    for fit in fits(conv.weight[:, 0].detach().double(), patches, supports(view, 3, 0, 2)):
        assert fit.kernel.isfinite().all()
        assert float(fit.wrong[0]) == 0.0


def test_large_kernels_by_distance() -> None:
    """Exact for what lies inside; the border counts as if images went on with zeros."""
    conv, x = layer((15, 15), padding=7), images(size=24)
    _, patches = seen(conv, x)
    assert not patches.is_full
    inner = F.pad(x, (7, 7, 7, 7))
    rows = windows(layer((15, 15), padding=7), inner)  # every place that a tap can reach
    wanted = rows.transpose(1, 2) @ rows / (x.shape[0] * x.shape[2] * x.shape[3])
    torch.testing.assert_close(patches.second(), wanted, rtol=1e-6, atol=1e-8)


numbers = st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=4, max_size=6)


@given(numbers, st.randoms())
def test_no_assignment_of_these_numbers_is_better(rows: list[list[float]], random: Any) -> None:
    wrong = torch.tensor(rows, dtype=torch.float64)
    channels = len(rows)
    counts = [1, 2, channels - 3]
    kinds = in_numbers(wrong, counts)
    assert torch.bincount(kinds, minlength=3).tolist() == counts
    mine = float(wrong.gather(1, kinds[:, None]).sum())
    base = [0] + [1] * 2 + [2] * (channels - 3)
    for other in set(itertools.permutations(base)):
        assert mine <= float(wrong.gather(1, torch.tensor(other)[:, None]).sum()) + 1e-6 * channels


def test_assignments_lie_on_the_hull() -> None:
    torch.manual_seed(0)
    costs = torch.tensor([1.0, 9.0, 14.0, 49.0])
    wrong = torch.rand(6, 4).sort(1, descending=True).values
    wrong[:, 3] = 0
    found = cheapest(wrong, costs)
    points = [(float(costs[kinds].sum()), float(wrong.gather(1, kinds[:, None]).sum())) for kinds in found]
    every = [(float(costs[list(kinds)].sum()), float(wrong[range(6), list(kinds)].sum()))
             for kinds in itertools.product(range(4), repeat=6)]  # fmt: skip
    for cost, error in points:
        assert not any(c <= cost and e < error - 1e-6 for c, e in every)
    assert points == sorted(points, key=lambda point: -point[0])
    assert (float(costs[0] * 6), float(wrong[:, 0].sum())) in [pytest.approx(point) for point in points]


def only_site(graph: Graph, rule: Inception, x: Tensor) -> Site:
    (site,), misses = find_sites(graph, [rule], frozenset())
    assert not misses
    for watch in site.watches.values():
        watch.statistic.add(x)
    return site


@pytest.mark.parametrize("rule", [Inception(), Inception(ratio=0.25), Inception(rank=0, band=3, square=1)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_predicted_errors_are_those_of_the_rewritten_layer(name: str, rule: Inception) -> None:
    """On the data that was fitted to, for every option."""
    kernel, settings = GEOMETRIES[name]
    x = images()
    graph, _ = view_of(layer(kernel, **settings), x)
    site = only_site(graph, rule, x)
    options = rule.options(graph, site.match, {key: watch.statistic for key, watch in site.watches.items()})
    assert options
    assert len({option.text for option in options}) > 1 or rule.ratio
    for option in options:
        swap = Swap(site.match, replacement(graph, site.match, option))
        Trial(graph).run([x], [swap])
        assert swap.error == pytest.approx(option.error, rel=2e-3, abs=2e-6), option.text


def test_kernels_in_the_span_are_kept_exactly() -> None:
    conv = layer((7, 7), padding=3)
    kinds = [
        (slice(2, 5), slice(2, 5)),
        (slice(3, 4), slice(0, 7)),
        (slice(0, 7), slice(3, 4)),
        (slice(3, 4), slice(3, 4)),
    ]
    with torch.no_grad():
        for channel, (rows, columns) in enumerate(kinds):
            kept = conv.weight[channel, 0, rows, columns].clone()
            conv.weight[channel].zero_()
            conv.weight[channel, 0, rows, columns] = kept
    model = nn.Sequential(conv).eval()
    x = images(seed=5)
    student = approximate(model, [images(), x], "inception{ratio=0.25}", max_error=1e-5)
    (entry,) = student.ledger.taken
    assert entry.option == "1 square, 1 row, 1 column, 1 identity"
    assert entry.measured is not None
    assert entry.measured < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(student(x), model(x), rtol=1e-4, atol=1e-4)


def test_what_is_no_site() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.point = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4)
            self.up = nn.ConvTranspose2d(4, 4, 3, groups=4)

        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(self.up(self.point(self.dense(x))), w, groups=4)

    x, w = images(), torch.randn(4, 1, 3, 3)
    graph = capture(Several().eval(), (x, w)).graph
    sites, misses = find_sites(graph, [Inception()], frozenset())
    assert not sites
    assert [str(miss) for miss in misses if "depends on the input" in str(miss)]


@pytest.mark.parametrize("padding", [0, 7])
def test_large_kernels_behind_activations(padding: int) -> None:
    """Inputs far from zero, with borders and without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 15, padding=padding, groups=4)).eval()
    data = [images(2, size=28, seed=seed) + 3 for seed in range(4)]
    ledger = approximate(model, data, "inception", max_error=0.5).ledger
    (entry,) = ledger.taken
    assert entry.measured is not None
    assert 1 / 3 < entry.measured / entry.predicted < 3
