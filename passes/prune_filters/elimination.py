r"""Which channels go first, and what the readers of the others become.

For a reader :math:`y = V z + b` of channels with covariance H, to leave out channel i and let the other columns of V
make up for it costs, and takes,

.. math:: \frac{\lVert v_i \rVert^2}{(H^{-1})_{ii}},\qquad V \leftarrow V - \frac{v_i\,(H^{-1})_{i\cdot}}{(H^{-1})_{ii}}

(Hassibi and Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993). The cheapest one goes
first, and the inverse is reduced to those that are left.

How much the covariance of few rows is to be trusted is tried out: channels are chosen on one half of the samples, and
what is lost is measured on the other one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewrite.approximation.statistics import Moments, shrunk

RIDGE = 1e-8
"""What is added to the diagonal, relative to its mean: channels that always agree cannot be told apart."""


@dataclass(frozen=True)
class Kept:
    """What is left once some channels are gone.

    Attributes:
        channels: those that stay, in order.
        weight: ``[O, kept]``, of the reader.
        wrong: the mean energy of what the reader's outputs lack, means aside, as other samples show it.
    """

    channels: Tensor
    weight: Tensor
    wrong: float


def eliminate(weight: Tensor, moments: Moments, counts: Collection[int]) -> list[Kept]:
    """Leave channels out one after the other; what is left when so many are, the most first.

    Args:
        weight: ``[O, C]``, of the reader, in float64.
        moments: of the channels.
        counts: how many stay, each at least 1 and less than C.
    """
    gram = weight.T @ weight
    best: tuple[float, bool, dict[int, float]] | None = None
    for shrinks in (False, True):
        wrong = _crossed(gram, moments, counts, shrinks)
        score = sum(wrong.values())
        if best is None or score < best[0]:
            best = score, shrinks, wrong
    assert best is not None
    covariance = _covariance(moments, best[1])
    found = []
    for left, channels in order(gram, covariance, counts).items():
        found.append(Kept(channels, weight @ _carried(covariance, channels).T, best[2][left]))
    return found


def _covariance(moments: Moments, shrinks: bool) -> Tensor:
    return shrunk(moments.covariance, moments.count) if shrinks else moments.covariance


def _crossed(gram: Tensor, moments: Moments, counts: Collection[int], shrinks: bool) -> dict[int, float]:
    """What is lost on one half of the samples by what was chosen on the other one, the mean of both ways."""
    halves = moments.halves()
    if halves is None:  # one sample
        halves = moments, moments
    found = dict.fromkeys(counts, 0.0)
    for mine, other in (halves, halves[::-1]):
        covariance = _covariance(mine, shrinks)
        for left, channels in order(gram, covariance, counts).items():
            lost = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            lost[:, channels] -= _carried(covariance, channels).T
            found[left] += 0.5 * max(0.0, float((gram * (lost @ other.covariance @ lost.T)).sum()))
    return found


def _carried(covariance: Tensor, channels: Tensor) -> Tensor:
    """``[kept, C]``: each channel as a sum of those that stay, as far as they can tell it."""
    inner = covariance[channels][:, channels]
    scale = float(inner.diagonal().mean())
    inner = inner + (scale * RIDGE if scale > 0 else 1.0) * torch.eye(len(channels)).to(inner)
    told: Tensor = torch.linalg.solve(inner, covariance[channels])
    return told


def order(gram: Tensor, covariance: Tensor, counts: Collection[int]) -> Mapping[int, Tensor]:
    """The channels that stay, in order, by how many there are, the most first.

    Args:
        gram: ``[C, C]``, products of the reader's columns.
        covariance: ``[C, C]``, of the channels.
        counts: how many stay.
    """
    channels = len(gram)
    scale = float(covariance.diagonal().mean())
    added = scale * RIDGE if scale > 0 else 1.0
    inverse = torch.linalg.inv(covariance + added * torch.eye(channels).to(covariance))
    gram, alive = gram.clone(), torch.ones(channels, dtype=torch.bool, device=gram.device)
    found: dict[int, Tensor] = {}
    for left in range(channels - 1, min(counts, default=channels) - 1, -1):
        least = torch.finfo(inverse.dtype).tiny
        price = gram.diagonal() / inverse.diagonal().clamp_min(least)
        i = int(torch.where(alive, price, torch.inf).argmin())
        row, column, own = inverse[i] / inverse[i, i], gram[:, i].clone(), float(gram[i, i])
        gram += own * torch.outer(row, row) - torch.outer(column, row) - torch.outer(row, column)
        inverse -= torch.outer(inverse[:, i].clone(), row)
        alive[i] = False
        inverse[i], inverse[:, i], gram[i], gram[:, i] = 0.0, 0.0, 0.0, 0.0
        if left in counts:
            found[left] = alive.nonzero().flatten()
    return found
