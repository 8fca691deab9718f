r"""Chains of low rank in closed form, optimal for the data or nearly so: channels, spatial, Tucker.

Each fits the weights of several ranks, which share what can be shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.low_rank_approximation.chain import Fit, Shape, Step, Steps, balanced
from passes.low_rank_approximation.regression import Metric, Projection, Regression, leading, principal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from passes.low_rank_approximation.chain import Pick


def channel(metric: Metric, shape: Shape, pick: Pick) -> Iterator[Fit]:
    r"""``W = A B``: the layer with R outputs, then a pointwise one.

    .. math:: A = U_R,\quad B = U_R^\top W,\quad W S W^\top = U \Lambda U^\top

    which is the best there is of each rank: the singular value decomposition of :math:`W S^{1/2}` has these U, the
    principal components of the outputs (Zhang et al., Accelerating Very Deep Convolutional Networks, 2016, without
    activations).
    """
    groups, outputs, features = metric.flat.shape
    full = min(outputs, features)

    def chain(rank: int) -> Steps:
        return Step("narrow", shape.inputs, rank, shape.axes), Step("wide", rank, outputs)

    ranks = pick(full, chain)
    if not ranks:
        return
    if outputs <= features:
        _, basis = leading(metric.spread + metric.ridge * (metric.flat @ metric.flat.mT))
    else:
        second = torch.cat([rows for _, rows in metric.known.covariance()], 1)
        _, basis = principal(metric.flat, second)
    left = metric.variance - metric.along(basis).sum(0).cumsum(0)
    taps = [1] * len(shape.kernel)
    narrow = (basis.mT @ metric.flat).reshape(groups, -1, *metric.weight.shape[2:])
    narrow, wide = balanced(chain(full), (narrow, basis.reshape(groups, outputs, -1, *taps)))
    narrow, wide = narrow.to(metric.dtype), wide.to(metric.dtype)
    for rank in ranks:
        some = basis[:, :, :rank]
        shift = metric.centre - (some @ (some.mT @ metric.centre[:, :, None]))[:, :, 0]
        error = metric.error(float(left[rank - 1]))
        yield Fit(f"channel {rank}", chain(rank), (narrow[:, :rank], wide[:, :, :rank]), shift, error)


def spatial(metric: Metric, shape: Shape, pick: Pick) -> Iterator[Fit]:
    r"""A convolution along one axis, then one along the other.

    .. math:: W_{o,c,i,j} = \sum_{r=1}^{R} H_{o,r,j} V_{r,c,i},\quad H = W S T^\top (T S T^\top)^{-1},\quad
        T = V \otimes I

    V spans the best subspace of the matrix with rows :math:`(o, j)` and columns :math:`(c, i)` under the moments of
    the columns, places j taken for alike; H is the best for that V (after Jaderberg et al., Speeding up Convolutional
    Neural Networks with Low Rank Expansions, 2014). That axis comes first with which the subspaces of all ranks that
    save something leave less.
    """
    if len(shape.kernel) != 2 or min(shape.kernel) < 2:
        return
    orders = [each for first in (0, 1) if (each := _order(metric, shape, pick, first)) is not None]
    if not orders:
        return
    order = min(orders, key=lambda each: each.left)
    groups, outputs = metric.flat.shape[:2]
    first, ranks = order.first, order.ranks
    one, other = [1, 1], [1, 1]
    one[first], other[1 - first] = shape.kernel[first], shape.kernel[1 - first]
    regression = Regression(metric, Projection(order.before, metric.sizes, (0, 1 + first)))
    for rank in ranks:
        after, wrong = regression.solve(rank * math.prod(other))
        weights = (order.before[:, :rank].reshape(groups, rank, shape.inputs, *one),
                   after.reshape(groups, outputs, rank, *other))  # fmt: skip
        shift = regression.shift(after)
        yield fitted(f"spatial {rank}", metric, _along(shape, first, rank), weights, shift, wrong)


@dataclass(frozen=True, eq=False)
class _Order:
    """Which axis comes first.

    Attributes:
        first: 0 or 1.
        ranks: that save something.
        before: ``[groups, R, C K]``, the kernels along it of all ranks.
        left: the mean part of the energy that is left out by these ranks.
    """

    first: int
    ranks: list[int]
    before: Tensor
    left: float


def _along(shape: Shape, first: int, rank: int) -> Steps:
    names = ("column", "row") if first == 0 else ("row", "column")
    return Step(names[0], shape.inputs, rank, (first,)), Step(names[1], rank, shape.outputs, (1 - first,))


def _order(metric: Metric, shape: Shape, pick: Pick, first: int) -> _Order | None:
    rows, columns = shape.outputs * shape.kernel[1 - first], shape.inputs * shape.kernel[first]
    ranks = pick(min(rows, columns), lambda rank: _along(shape, first, rank))
    if not ranks:
        return None
    matrix = metric.weight.permute(0, 1, 4 - first, 2, 3 + first).reshape(shape.groups, rows, columns)
    energies, basis = principal(matrix, metric.known.within(metric.sizes, (0, 1 + first)))
    left = _left(energies.sum(0))[ranks].mean()
    return _Order(first, ranks, (basis.mT @ matrix)[:, : max(ranks)], float(left))


def tucker(metric: Metric, shape: Shape, pick: Pick) -> Iterator[Fit]:
    r"""Fewer channels by a pointwise layer, the convolution over these, and the outputs by another pointwise layer.

    .. math:: W_{o,c,i} = \sum_{a,b} U_{o,b} G_{b,a,i} B_{a,c},\quad G = U^\top W S T^\top (T S T^\top)^{-1},\quad
        T = B \otimes I

    B spans the best subspace of the matrix with rows :math:`(o, i)` and columns c under the moments of the channels,
    taps taken for alike, and U is the best for that B, a regression of reduced rank (Tucker-2 of Kim et al.,
    Compression of Deep Convolutional Neural Networks, 2016, under the metric of the data). The one rank is that of U;
    B leaves no more of its energy than U does.
    """
    groups, outputs, _ = metric.flat.shape
    taps = shape.features // shape.inputs
    if taps < 2:
        return
    matrix = metric.weight.flatten(3).mT.reshape(groups, outputs * taps, shape.inputs)
    energies, basis = principal(matrix, metric.known.within(metric.sizes, (0,)))
    inner = _matched(energies.sum(0), leading(metric.spread)[0].sum(0))

    def chain(rank: int) -> Steps:
        return (Step("narrow", shape.inputs, inner[rank], ()), Step("core", inner[rank], rank, shape.axes),
                Step("wide", rank, outputs))  # fmt: skip

    ranks = pick(outputs, chain)
    if not ranks:
        return
    before = (basis.mT @ matrix)[:, : inner[max(ranks)]]
    regression = Regression(metric, Projection(before, metric.sizes, (0,)))
    ones = [1] * len(shape.kernel)
    for rank in ranks:
        few = inner[rank]
        wide = leading(regression.explained(few * taps))[1][:, :, :rank]
        core, wrong = regression.solve(few * taps, wide)
        steps = chain(rank)
        weights = (
            before[:, :few].reshape(groups, few, shape.inputs, *ones),
            core.reshape(groups, rank, few, *shape.kernel),
            wide.reshape(groups, outputs, rank, *ones),
        )
        shift = regression.shift(core, wide)
        yield fitted(f"tucker {few} x {rank}", metric, steps, weights, shift, wrong)


def _matched(inner: Tensor, outer: Tensor) -> list[int]:
    """For each number of outer directions how many inner ones leave no more of their energy out."""
    left_inner, left_outer = (_left(energies).tolist() for energies in (inner, outer))
    return [next(i for i, left in enumerate(left_inner) if i and (left <= allowed or i == len(left_inner) - 1))
            for allowed in left_outer]  # fmt: skip


def _left(energies: Tensor) -> Tensor:
    """The part of the energy beyond each rank, from none on; what is rounding counts as nothing."""
    beyond = torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])
    return (beyond / beyond[0].clamp_min(1e-300)).clamp_min(1e-12)


def fitted(
    text: str, metric: Metric, steps: Steps, weights: Sequence[Tensor], shift: Tensor, wrong: float
) -> Fit:  # fmt: skip
    """A chain with its weights as they will be: balanced, and in the dtype of the layer's."""
    rounded = tuple(weight.to(metric.dtype) for weight in balanced(steps, weights))
    return Fit(text, steps, rounded, shift, metric.error(wrong))
