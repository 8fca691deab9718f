"""Which batches are fitted to, which are held out, and what is said of those that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rewrite.approximation.calibration import Batches
from rewrite.approximation.statistics import Moments, shrunk
from rewrite.errors import InputError
from rewrite.graph import Graph
from rewrite.trace import capture


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(nn.Linear(3, 2).eval(), (torch.randn(2, 3),)).graph


def numbered(count: int, samples: int = 2) -> Iterator[Tensor]:
    return (torch.full((samples, 3), float(i)) for i in range(1, count + 1))


def firsts(flats: list[list[Tensor]]) -> list[float]:
    return [float(flat[0][0, 0]) for flat in flats]


@pytest.mark.parametrize(("count", "fitted", "held"), [
    (2, [1], [2]), (3, [1, 2], [3]), (4, [1, 2, 3], [4]), (5, [1, 2, 3, 5], [4]),
    (13, [1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13], [4, 8]),
])  # fmt: skip
def test_some_batches_are_held_out(graph: Graph, count: int, fitted: list[int], held: list[int]) -> None:
    batches = Batches(numbered(count))
    assert firsts(list(batches.fitting(graph))) == fitted
    assert firsts(batches.held_out) == held
    assert batches.fitted == len(fitted)


def test_one_batch_is_cut_in_two(graph: Graph) -> None:
    batches = Batches([torch.arange(15.0).reshape(5, 3)])
    ((fit,),) = batches.fitting(graph)
    ((held,),) = batches.held_out
    assert fit[:, 0].tolist() == [0, 3, 6]
    assert held[:, 0].tolist() == [9, 12]


def test_again_holds_out_the_same(graph: Graph) -> None:
    batches = Batches(list(numbered(6)))
    first = firsts(list(batches.fitting(graph)))
    again = batches.again()
    assert firsts(list(again.fitting(graph))) == first
    assert firsts(again.held_out) == firsts(batches.held_out) == [4]
    with pytest.raises(InputError, match=r"can be read once only.*a list or a DataLoader"):
        Batches(numbered(6)).again()


def test_batches_are_not_kept(graph: Graph) -> None:
    """But for those that are held out."""
    import gc
    import weakref

    seen: list[weakref.ref[Tensor]] = []

    def watched() -> Iterator[Tensor]:
        for x in numbered(20):
            seen.append(weakref.ref(x))
            yield x

    batches, most = Batches(watched()), 0
    for _ in batches.fitting(graph):
        gc.collect()
        most = max(most, sum(ref() is not None for ref in seen))
    assert most <= 2 + 4  # held out; the first one, that which is read, and those around it


def said(graph: Graph, given: object) -> str:
    with pytest.raises(InputError) as raised:
        list(Batches(given).fitting(graph))  # type: ignore[arg-type]
    return str(raised.value)


def test_what_does_not_fit_is_said(graph: Graph) -> None:
    good = torch.randn(2, 3)
    assert "no batch" in said(graph, [])
    assert "a tensor" in said(graph, good)
    assert "int" in said(graph, 7)
    assert "cannot be cut in two" in said(graph, [good[:1]])
    assert "batch 2 is empty" in said(graph, [good, good[:0]])
    assert "batch 2 has NaN" in said(graph, [good, good * torch.nan])
    assert "shape [2, 4]" in said(graph, [good, torch.randn(2, 4)])
    assert "float64" in said(graph, [good, good.double()])
    assert "not a call like the first" in said(graph, [good, (good, good)])
    assert "float for the tensor" in said(graph, [good, 3.0])


def test_moments_are_those_of_all_rows() -> None:
    x, y = torch.randn(40, 3, 5) * 3 + 1, torch.randn(40, 5, 2)
    moments = Moments(1, 2)
    for rows in range(0, 40, 8):
        moments.add(x[rows : rows + 8], y[rows : rows + 8])
    both = torch.cat([x.movedim(1, 2), y], 2).reshape(-1, 5).double()
    torch.testing.assert_close(moments.mean, both.mean(0))
    torch.testing.assert_close(moments.second, both.T @ both / len(both))
    torch.testing.assert_close(moments.covariance, torch.cov(both.T, correction=0))


@pytest.mark.parametrize("rows", [10, 40, 4000])
def test_shrunk_covariances_are_nearer_to_the_truth(rows: int) -> None:
    """Of few rows far nearer; of many they are what was measured."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.eye(30, dtype=torch.float64) + 0.1 * torch.randn(30, 30, generator=generator, dtype=torch.float64)
    truth = mix @ mix.T
    measured, better = 0.0, 0.0
    for _ in range(10):
        x = torch.randn(rows, 30, generator=generator, dtype=torch.float64) @ mix.T
        found = torch.cov(x.T, correction=0)
        measured += float((found - truth).norm())
        better += float((shrunk(found, rows) - truth).norm())
        torch.testing.assert_close(shrunk(found, rows).diagonal(), found.diagonal())
        assert float(torch.linalg.eigvalsh(shrunk(found, rows))[0]) > 0
    assert better < measured
    assert (better < 0.7 * measured) == (rows < 100)


def test_dead_features_stay_dead() -> None:
    covariance = torch.diag(torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(shrunk(covariance, 5), covariance)
