"""What is learned from data one batch after the other, in memory that does not depend on how many there are."""

from __future__ import annotations

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

    Several tensors are taken as one row each: their features beside each other.

    Args:
        dims: for each tensor the dimension that holds its features; all others are samples.

    Attributes:
        count: the rows so far.
        total: ``[F]``, their sum, in float64.
        products: ``[F, F]``, the sum of their outer products, in float64.
    """

    def __init__(self, *dims: int):
        self._dims = dims
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, *values: Tensor) -> None:
        """Add the rows of one batch."""
        parts = [x.detach().movedim(dim, -1).flatten(0, -2).double() for x, dim in zip(values, self._dims, strict=True)]
        rows = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        total, products = rows.sum(0), rows.T @ rows
        self.total = total if self.total is None else self.total.add_(total)
        self.products = products if self.products is None else self.products.add_(products)
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """``[F]``."""
        assert self.total is not None
        return self.total / max(self.count, 1)

    @property
    def second(self) -> Tensor:
        """``[F, F]``, the mean of the outer products."""
        assert self.products is not None
        return self.products / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """``[F, F]``, about the mean."""
        return self.second - self.mean[:, None] * self.mean[None, :]
