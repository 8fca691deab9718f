"""What is learned from data one batch after the other, in memory that does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Statistic(Protocol):
    """Something that is learned from values of nodes."""

    def add(self, *values: Tensor) -> None:
        """Take the values of one batch; they are not kept."""
        ...


class Moments:
    """Sums of rows and of their products with one another: means, and what linear least squares need.

    Several tensors are taken as one row each: their features beside each other. Every second sample, an element of the
    first dimension, is also counted apart, so that what is fitted to one half can be tried on the other.

    Args:
        dims: for each tensor the dimension that holds its features; all others are samples.
    """

    def __init__(self, *dims: int):
        self._dims = dims
        self._samples = 0
        self._counts = [0, 0]
        self._totals: list[Tensor | None] = [None, None]
        self._products: list[Tensor | None] = [None, None]

    def add(self, *values: Tensor) -> None:
        """Add the rows of one batch."""
        first = self._samples % 2
        self._samples += len(values[0])
        for half in (0, 1):
            some = [x[abs(half - first) :: 2] for x in values]
            if len(some[0]):
                self._add(half, some)

    def _add(self, half: int, values: Sequence[Tensor]) -> None:
        parts = [x.detach().movedim(dim, -1).flatten(0, -2).double() for x, dim in zip(values, self._dims, strict=True)]
        rows = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        total, products = rows.sum(0), rows.T @ rows
        before, earlier = self._totals[half], self._products[half]
        self._totals[half] = total if before is None else before.add_(total)
        self._products[half] = products if earlier is None else earlier.add_(products)
        self._counts[half] += len(rows)

    @property
    def count(self) -> int:
        """The rows so far."""
        return sum(self._counts)

    def halves(self) -> tuple[Moments, Moments] | None:
        """Those of every second sample, and of the others; None where there is a single sample."""
        if not all(self._counts):
            return None
        found = []
        for half in (0, 1):
            twin = Moments(*self._dims)
            twin._counts[0], twin._totals[0], twin._products[0] = (
                self._counts[half], self._totals[half], self._products[half]
            )  # fmt: skip
            found.append(twin)
        return found[0], found[1]

    @property
    def mean(self) -> Tensor:
        """``[F]``."""
        return _sum(self._totals) / max(self.count, 1)

    @property
    def second(self) -> Tensor:
        """``[F, F]``, the mean of the outer products."""
        return _sum(self._products) / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """``[F, F]``, about the mean."""
        return self.second - self.mean[:, None] * self.mean[None, :]


def _sum(parts: Sequence[Tensor | None]) -> Tensor:
    found = [part for part in parts if part is not None]
    assert found  # something was added
    return found[0] if len(found) == 1 else found[0] + found[1]


def shrunk(covariance: Tensor, count: int) -> Tensor:
    r"""A covariance that few rows have been learned from, with correlations brought nearer to none.

    .. math:: \rho = \frac{(1 - 2/p)\operatorname{tr} C^2 + p^2}{(n + 1 - 2/p)(\operatorname{tr} C^2 - p)}

    is the part by which the correlations C of p features from n rows are reduced (Chen, Wiesel, Eldar and Hero,
    Shrinkage algorithms for MMSE covariance estimation, 2010). Without that, what is fitted to no more rows than there
    are features is right for these rows only.

    Args:
        covariance: ``[..., p, p]``.
        count: of the rows.
    """
    p = covariance.shape[-1]
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    deviation = torch.where(variance > 0, variance, 1.0).sqrt()
    correlation = covariance / (deviation[..., :, None] * deviation[..., None, :])
    squares = correlation.square().sum((-2, -1))
    spread = (squares - p).clamp_min(torch.finfo(covariance.dtype).tiny)
    part = (((1 - 2 / p) * squares + p**2) / ((count + 1 - 2 / p) * spread)).clamp(0.0, 1.0)
    return covariance - part[..., None, None] * (covariance - torch.diag_embed(variance))
