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


TOGETHER = 64
"""One channel goes at a time as long as there are less than twice as many, then one of so many."""


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


def eliminate(weight: Tensor, moments: Moments, counts: Collection[int], centred: bool = True) -> list[Kept]:
    """Leave channels out one after the other; what is left when so many are, the most first.

    Args:
        weight: ``[O, C]``, of the reader, in float64.
        moments: of the channels.
        counts: how many stay, each at least 1 and less than C.
        centred: whether a bias takes what the means make of the difference.
    """
    if not counts:
        return []
    gram = weight.T @ weight
    best: tuple[float, bool, dict[int, float]] | None = None
    for shrinks in (False, True):
        wrong = _crossed(gram, moments, counts, shrinks, centred)
        score = sum(wrong.values())
        if best is None or score < best[0]:
            best = score, shrinks, wrong
    assert best is not None
    spread = _spread(moments, best[1], centred)
    found = []
    for left, channels in order(gram, spread, counts).items():
        found.append(Kept(channels, weight @ _carried(spread, channels).T, best[2][left]))
    return found


def _spread(moments: Moments, shrinks: bool, centred: bool) -> Tensor:
    """The moments that errors are measured by, about the mean or about zero."""
    found = moments.covariance if centred else moments.second
    return shrunk(found, moments.count) if shrinks else found


def _crossed(gram: Tensor, moments: Moments, counts: Collection[int], shrinks: bool, centred: bool) -> dict[int, float]:
    """What is lost on one half of the samples by what was chosen on the other one, the mean of both ways."""
    halves = moments.halves()
    if halves is None:  # one sample
        halves = moments, moments
    found = dict.fromkeys(counts, 0.0)
    for mine, other in (halves, halves[::-1]):
        spread, tried = _spread(mine, shrinks, centred), _spread(other, False, centred)
        for left, channels in order(gram, spread, counts).items():
            lost = torch.eye(len(gram)).to(gram)
            lost[:, channels] -= _carried(spread, channels).T
            found[left] += 0.5 * max(0.0, float((gram * (lost @ tried @ lost.T)).sum()))
    return found


def _carried(spread: Tensor, channels: Tensor) -> Tensor:
    """``[kept, C]``: each channel as a sum of those that stay, as far as they can tell it."""
    inner = spread[channels][:, channels]
    level = float(inner.diagonal().mean())
    inner = inner + (level * RIDGE if level > 0 else 1.0) * torch.eye(len(channels)).to(inner)
    told: Tensor = torch.linalg.solve(inner, spread[channels])
    return told


def order(gram: Tensor, spread: Tensor, counts: Collection[int]) -> Mapping[int, Tensor]:
    """The channels that stay, in order, by how many there are, the most first.

    Of many channels several go at a time, those that are cheapest alone.

    Args:
        gram: ``[C, C]``, products of the reader's columns.
        spread: ``[C, C]``, moments of the channels.
        counts: how many stay.
    """
    channels = len(gram)
    level = float(spread.diagonal().mean())
    inverse = torch.linalg.inv(spread + (level * RIDGE if level > 0 else 1.0) * torch.eye(channels).to(spread))
    gram, alive = gram.clone(), torch.arange(channels).to(gram.device)
    found: dict[int, Tensor] = {}
    for left in sorted(counts, reverse=True):
        while len(alive) > left:
            price = gram.diagonal() / inverse.diagonal().clamp_min(torch.finfo(inverse.dtype).tiny)
            many = min(max(1, len(alive) // TOGETHER), len(alive) - left)
            gone = price.topk(many, largest=False).indices
            rest = torch.ones(len(alive), dtype=torch.bool, device=gram.device)
            rest[gone] = False
            rows = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
            across = gram[:, gone] @ rows
            gram = gram - across - across.T + rows.T @ gram[gone][:, gone] @ rows
            inverse = inverse - inverse[:, gone] @ rows
            gram, inverse, alive = gram[rest][:, rest], inverse[rest][:, rest], alive[rest]
        found[left] = alive
    return found
