"""Hidden channels removed: against least squares, planted redundancy, whole layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.prune_filters import PruneFilters
from passes.prune_filters.elimination import eliminate
from rewrite import approximate, optimize
from rewrite.approximation.sites import find_sites, replacement
from rewrite.approximation.statistics import Moments
from rewrite.approximation.trial import Swap, Trial
from rewrite.errors import PipelineError
from rewrite.trace import capture


def correlated(samples: int, channels: int, seed: int = 0) -> Tensor:
    """Rows ``[samples, channels]`` in which channels depend on each other, not about zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator) * torch.linspace(2, 0.05, channels)[:, None]
    return torch.randn(samples, channels, generator=generator) @ mix + torch.linspace(-2, 3, channels)


def moments_of(z: Tensor) -> Moments:
    moments = Moments(1)
    moments.add(z)
    return moments


def test_what_is_left_is_what_least_squares_give() -> None:
    z = correlated(3000, 6).double()
    weight = torch.randn(3, 6, dtype=torch.float64)
    y = z @ weight.T
    for kept in eliminate(weight, moments_of(z), {5, 3, 1}):
        table = torch.cat([z[:, kept.channels], torch.ones(3000, 1)], 1)
        best = torch.linalg.lstsq(table, y).solution
        torch.testing.assert_close(kept.weight, best[:-1].T, rtol=2e-2, atol=2e-2)
        left = float((y - table @ best).square().mean(0).sum())
        assert kept.wrong == pytest.approx(left, rel=0.05)


def test_the_first_channel_to_go_is_the_cheapest() -> None:
    z = correlated(400, 5, seed=3).double()
    weight = torch.randn(4, 5, dtype=torch.float64)
    y = z @ weight.T
    lost = []
    for gone in range(5):
        table = torch.cat([z[:, [c for c in range(5) if c != gone]], torch.ones(400, 1)], 1)
        lost.append(float((y - table @ torch.linalg.lstsq(table, y).solution).square().mean(0).sum()))
    (kept,) = eliminate(weight, moments_of(z), {4})
    assert set(range(5)) - set(kept.channels.tolist()) == {lost.index(min(lost))}


def test_fewer_channels_are_never_better() -> None:
    z = correlated(300, 8).double()
    found = eliminate(torch.randn(2, 8, dtype=torch.float64), moments_of(z), range(1, 8))
    assert [len(kept.channels) for kept in found] == list(range(7, 0, -1))
    for more, less in itertools.pairwise(found):
        assert less.wrong >= more.wrong * (1 - 1e-2)
        assert set(less.channels.tolist()) < set(more.channels.tolist())


def test_dead_and_equal_channels_go_first_and_cost_nothing() -> None:
    z = correlated(300, 6).double()
    z[:, 2], z[:, 5] = 4.0, z[:, 0] * 2 - 1
    weight = torch.randn(3, 6, dtype=torch.float64)
    (kept,) = eliminate(weight, moments_of(z), {4})
    assert 2 not in kept.channels.tolist()
    assert not {0, 5} <= set(kept.channels.tolist())
    assert kept.wrong < 1e-4 * float((z @ weight.T).var(0).sum())


class Pair(nn.Module):
    """Two layers with something between."""

    def __init__(self, first: nn.Module, between: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.between, self.second = first, between, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 1.0))
    return model.eval()


PAIRS: dict[str, Any] = {
    "linear": (lambda: Pair(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 5)), (40, 7, 6)),
    "no bias": (lambda: Pair(nn.Linear(6, 16, bias=False), nn.SiLU(), nn.Linear(16, 5, bias=False)), (90, 6)),
    "pointwise": (lambda: Pair(nn.Conv2d(6, 16, 1), nn.ReLU(), nn.Conv2d(16, 5, 1)), (9, 6, 8, 8)),
    "a kernel first": (lambda: Pair(nn.Conv2d(6, 16, 3, 2, padding=1), nn.ReLU6(), nn.Conv2d(16, 5, 1)), (9, 6, 8, 8)),
    "depthwise between": (
        lambda: Pair(
            nn.Conv2d(6, 16, 1),
            nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, stride=2, groups=16, bias=False), nn.Hardswish()),
            nn.Conv2d(16, 5, 1),
        ),
        (9, 6, 8, 8),
    ),
    "one dimension": (lambda: Pair(nn.Conv1d(6, 16, 5), nn.Tanh(), nn.Conv1d(16, 5, 1)), (9, 6, 20)),
    "nothing between": (lambda: Pair(nn.Linear(6, 16), nn.Identity(), nn.Linear(16, 5)), (90, 6)),
}  # fmt: skip


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.mark.parametrize(("many", "tolerance"), [(40, 0.35), (4, 0.6)])
@pytest.mark.parametrize("name", PAIRS)
def test_predicted_errors_are_those_of_the_rewritten_layers(name: str, many: int, tolerance: float) -> None:
    """On other data than was fitted to, for every number of channels; also where little was fitted to."""
    make, shape = PAIRS[name]
    model = seeded(make())
    shape = (max(4, shape[0] * many // 9), *shape[1:])
    x, other = draw(shape), draw((shape[0] * 40 // many, *shape[1:]), 1)
    graph = capture(model, (x,)).graph
    rule = PruneFilters()
    (site,), misses = find_sites(graph, [rule], frozenset())
    assert not misses
    watches = [(watch.nodes, lambda values, watch=watch: watch.statistic.add(*(values[n] for n in watch.nodes)))
               for watch in site.watches.values()]  # fmt: skip
    Trial(graph).run([x], observers=watches)
    options = rule.options(graph, site.match, {key: watch.statistic for key, watch in site.watches.items()})
    assert [option.text for option in options] == ["12 of 16 channels", "8 of 16 channels", "4 of 16 channels"]
    for option in options:
        swap = Swap(site.match, replacement(graph, site.match, option))
        Trial(graph).run([other], [swap])
        assert swap.error == pytest.approx(option.error, rel=tolerance, abs=1e-5)


def test_redundant_channels_are_removed_for_nothing() -> None:
    model = seeded(Pair(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 3)))
    first = model.first
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        for channel in range(4, 12):
            first.weight[channel] = first.weight[channel % 4] * (channel + 1)
            first.bias[channel] = first.bias[channel % 4] * (channel + 1)  # type: ignore[index]
    batches = [draw((4, 3, 10, 10), seed) for seed in range(4)]
    student = approximate(model, batches, "prune-filters", max_error=1e-2)
    (entry,) = student.ledger.taken
    assert entry.option.startswith("4 of ")  # of those that are no exact multiples
    assert student.ledger.parameters[1] < 0.4 * student.ledger.parameters[0]
    x = draw((4, 3, 10, 10), 9)
    with torch.no_grad():
        torch.testing.assert_close(student(x), model(x), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(optimize(student, x, lower="eager", tune="off")(x), student(x).detach())


def test_budgets_hold_where_neighbours_are_alike() -> None:
    """There predictions are too low, and measured errors count."""
    model = seeded(Pair(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 5, padding=2)))
    smooth = [nn.functional.avg_pool2d(draw((4, 3, 16, 16), seed), 5, 1, 2) * 4 for seed in range(6)]
    student = approximate(model, smooth[:4], "prune-filters", max_error=0.2)
    assert student.ledger.taken
    assert student.ledger.drift <= 0.2
    x = torch.cat(smooth[4:])
    with torch.no_grad():
        assert float((student(x) - model(x)).norm() / model(x).norm()) < 0.3


class Read(nn.Module):
    """Hidden channels that are also read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.relu(self.first(x))
        return self.second(z), z


def test_what_others_read_stays() -> None:
    graph = capture(Read().eval(), (draw((4, 6)),)).graph
    sites, misses = find_sites(graph, [PruneFilters()], frozenset())
    assert not sites
    assert "read elsewhere" in str(misses[0])


def test_what_mixes_channels_is_no_site() -> None:
    for between in (nn.Softmax(1), nn.LayerNorm(16), nn.GroupNorm(4, 16)):
        model = Pair(nn.Linear(6, 16), between, nn.Linear(16, 5)).eval()
        sites, _ = find_sites(capture(model, (draw((4, 6)),)).graph, [PruneFilters()], frozenset())
        assert not sites


@pytest.mark.parametrize("options", [{"steps": 0}, {"least": 0.0}, {"least": 1.0}, {"multiple": 0}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=f"{next(iter(options))} is"):
        PruneFilters(**options)


def test_borders_of_zeros_are_no_mean() -> None:
    """Behind activations means are far from zero, and what a padded kernel reads at the border is not."""
    model = seeded(Pair(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)))
    with torch.no_grad():
        model.first.bias.add_(1.5)  # type: ignore[union-attr, operator]
    data = [draw((8, 3, 5, 5), seed) for seed in range(5)]
    ledger = approximate(model, data, "prune-filters{steps=1, least=0.5}", max_error=9.0).ledger
    (entry,) = ledger.taken
    assert entry.measured is not None
    assert entry.measured < 2 * entry.predicted < 0.2


def test_many_channels_go_several_at_a_time() -> None:
    z = correlated(4000, 200).double()
    weight = torch.randn(10, 200, dtype=torch.float64)
    alone, together = (eliminate(weight, moments_of(z), {50}) for _ in range(2))
    assert alone[0].wrong == together[0].wrong
    random = torch.randperm(200)[:50]
    y = z @ weight.T
    tables = [torch.cat([z[:, kept], torch.ones(4000, 1)], 1) for kept in (together[0].channels, random)]
    lost = [float((y - table @ torch.linalg.lstsq(table, y).solution).square().mean(0).sum()) for table in tables]
    assert lost[0] < 0.6 * lost[1]
    assert together[0].wrong == pytest.approx(lost[0], rel=0.3)
