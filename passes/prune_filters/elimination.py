r"""Which channels go first, and what the readers of the others become.

For a reader :math:`y = V z + b` of channels with covariance H, to leave out channel i and let the other columns of V
make up for it costs, and takes,

.. math:: \frac{\lVert v_i \rVert^2}{(H^{-1})_{ii}},\qquad V \leftarrow V - \frac{v_i\,(H^{-1})_{i\cdot}}{(H^{-1})_{ii}}

(Hassibi and Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993). The cheapest one goes
first, and the inverse is reduced to those that are left.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""What is added to the diagonal, relative to its mean: channels that always agree cannot be told apart."""


@dataclass(frozen=True)
class Kept:
    """What is left once some channels are gone.

    Attributes:
        channels: those that stay, in order.
        weight: ``[O, kept]``, of the reader.
        wrong: the mean energy of what the reader's outputs lack, means aside.
    """

    channels: Tensor
    weight: Tensor
    wrong: float


def eliminate(weight: Tensor, covariance: Tensor, counts: Collection[int]) -> list[Kept]:
    """Leave channels out one after the other; what is left when so many are.

    Args:
        weight: ``[O, C]``, of the reader, in float64.
        covariance: ``[C, C]``, of the channels.
        counts: how many stay, each at least 1 and less than C.

    Returns:
        One for each count, the largest first.
    """
    channels = len(covariance)
    scale = float(covariance.diagonal().mean())
    added = scale * RIDGE if scale > 0 else 1.0
    inverse = torch.linalg.inv(covariance + added * torch.eye(channels, dtype=covariance.dtype, device=weight.device))
    weight, given = weight.clone(), weight
    alive = torch.ones(channels, dtype=torch.bool, device=weight.device)
    found: list[Kept] = []
    for left in range(channels - 1, min(counts, default=channels) - 1, -1):
        price = weight.square().sum(0) / inverse.diagonal().clamp_min(torch.finfo(inverse.dtype).tiny)
        i = int(torch.where(alive, price, torch.inf).argmin())
        row = inverse[i] / inverse[i, i]
        weight -= weight[:, i, None] * row
        inverse -= inverse[:, i, None] * row
        alive[i] = False
        weight[:, ~alive] = 0.0
        inverse[~alive], inverse[:, ~alive] = 0.0, 0.0
        if left in counts:
            change = given - weight
            wrong = float((change @ covariance * change).sum())
            kept = alive.nonzero().flatten()
            found.append(Kept(kept, weight[:, kept].clone(), max(0.0, wrong)))
    return found
