r"""What a change of a layer's weights changes of its outputs, and least squares in that metric.

.. math:: E\,|D (p - m)|^2 = \operatorname{tr} D S D^\top

for weights that differ by D, the bias taking what the mean makes of it. Solutions are of S with a small ridge: of what
the data does not show, such as channels that are always zero, the weights are kept as well as they can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.low_rank_approximation.patches import Patches
    from rewrite.approximation.statistics import Moments

RIDGE = 1e-9
"""What is added to the diagonal of S, relative to its mean."""


class Metric:
    """The weights of a layer and what they make of its data; from :func:`of_patches` or :func:`of_outputs`.

    Attributes:
        weight: ``[groups, O, C, *kernel]``, in float64, O and C of a group.
        flat: ``[groups, O, features]``, the same.
        centre: ``[groups, O]``, the mean of the outputs without the bias.
        variance: that of the outputs, of all channels together.
        energy: the mean square of the outputs, of all channels together.
        ridge: ``[groups, 1, 1]``, what is added to the diagonal of S.
        dtype: what fitted weights are rounded to.
        patches: moments of what the layer reads, where they are known.
    """

    def __init__(self, weight: Tensor, bias: Tensor, centre: Tensor, level: Tensor, dtype: torch.dtype):
        self.weight, self.flat, self.centre, self.dtype = weight, weight.flatten(2), centre, dtype
        self.ridge = torch.where(level > 0, level * RIDGE, 1.0)[:, None, None]
        self.energy = float((centre + bias).square().sum())
        self.variance = 0.0
        self.patches: Patches | None = None
        self._products: Tensor | None = None
        self._spread: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the axes that features are made of: channels and the kernel's."""
        return tuple(self.weight.shape[2:])

    @property
    def known(self) -> Patches:
        """The moments of what the layer reads."""
        assert self.patches is not None
        return self.patches

    @property
    def spread(self) -> Tensor:
        """``[groups, O, O]``, the covariance of the outputs."""
        if self._spread is None:
            assert self._products is not None
            self._spread = _even(self._products @ self.flat.mT)
        return self._spread

    def along(self, basis: Tensor) -> Tensor:
        """``[groups, r]``, the variance of the outputs along orthonormal columns ``[groups, O, r]``."""
        if self._products is None:
            return (self.spread @ basis * basis).sum(1)
        return ((basis.mT @ self._products) * (basis.mT @ self.flat)).sum(2)

    def error(self, wrong: float) -> float:
        """An energy of what is wrong as an error."""
        return (max(wrong, 0.0) / self.energy) ** 0.5 if self.energy > 0 else 0.0

    def see(self, *, products: Tensor | None = None, spread: Tensor | None = None, patches: Patches | None = None
            ) -> Metric:  # fmt: skip
        """Take the moments: ``W S``, ``[groups, O, features]``, or the covariance of the outputs itself."""
        self.patches, self._products, self._spread = patches, products, spread
        self.variance = float(_trace(spread).sum()) if products is None else float((products * self.flat).sum())
        self.energy += self.variance
        return self


def of_patches(weight: Tensor, bias: Tensor, patches: Patches, dtype: torch.dtype) -> Metric:
    """From the moments of what a layer reads.

    Args:
        weight: ``[groups, O, C, *kernel]``, in float64.
        bias: ``[groups, O]``, in float64.
        patches: the moments.
        dtype: what fitted weights are rounded to.
    """
    flat = weight.flatten(2)
    products = torch.empty_like(flat)
    level = flat.new_zeros(len(flat))
    for part, rows in patches.covariance():
        products[:, :, part] = flat @ rows.mT
        level += rows[:, :, part].diagonal(dim1=1, dim2=2).sum(1)
    centre = (flat @ patches.mean[:, :, None])[:, :, 0]
    return Metric(weight, bias, centre, level / flat.shape[2], dtype).see(products=products, patches=patches)


def of_outputs(weight: Tensor, bias: Tensor, seen: Moments, dtype: torch.dtype) -> Metric:
    """From the moments of all outputs of a layer, which tell their best subspaces; see :func:`of_patches`."""
    groups, outputs = weight.shape[:2]
    blocks = seen.covariance.reshape(groups, outputs, groups, outputs).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    squares = weight.square().flatten(1).sum(1)
    level = torch.where(squares > 0, _trace(blocks) / squares, 0.0)
    return Metric(weight, bias, seen.mean.reshape(groups, outputs) - bias, level, dtype).see(spread=_even(blocks))


@dataclass(frozen=True, eq=False)
class Projection:
    """Features ``z = T p``, where T contracts channels and some axes of the kernel, and leaves the places of others.

    Attributes:
        matrix: ``[groups, R, n]``, over the places of the axes that are contracted, in order.
        sizes: of the axes that the values under the kernel are made of.
        axes: the contracted ones.
    """

    matrix: Tensor
    sizes: tuple[int, ...]
    axes: tuple[int, ...]

    def of(self, x: Tensor) -> Tensor:
        """``[groups, m, R places]`` of ``[groups, m, features]``; the places of one r beside each other."""
        groups, many, _ = x.shape
        n = len(self.sizes)
        kept = [a for a in range(n) if a not in self.axes]
        x = x.reshape(groups, many, *self.sizes).permute(0, 1, *(2 + a for a in kept), *(2 + a for a in self.axes))
        found = x.reshape(groups, -1, self.matrix.shape[2]) @ self.matrix.mT
        return found.reshape(groups, many, -1, self.matrix.shape[1]).mT.reshape(groups, many, -1)

    def gram(self) -> Tensor:
        """T T^T."""
        places = 1
        for a, size in enumerate(self.sizes):
            places *= 1 if a in self.axes else size
        eye = torch.eye(places, dtype=self.matrix.dtype, device=self.matrix.device)
        return torch.stack([torch.kron(part @ part.mT, eye) for part in self.matrix])


class Regression:
    """The layer's outputs by least squares from the first of some features."""

    def __init__(self, metric: Metric, projection: Projection):
        patches, flat = metric.known, metric.flat
        reduced = [projection.of(rows) for _, rows in patches.covariance()]
        products = torch.cat(reduced, 1)  # S T^T
        self._metric = metric
        self._cross = flat @ products
        self._products = _even(projection.of(products.mT.contiguous()))
        self._mean = projection.of(patches.mean[:, None])[:, 0]
        self._ridged_cross = self._cross + metric.ridge * projection.of(flat)
        self._ridged = self._products + metric.ridge * projection.gram()

    def solve(self, count: int) -> tuple[Tensor, Tensor]:
        """``H = [groups, O, count]`` from so many features, and the covariance of the outputs that it explains."""
        cross = self._ridged_cross[:, :, :count]
        found: Tensor = torch.cholesky_solve(cross.mT, cholesky(self._ridged[:, :count, :count])).mT
        return found, _even(found @ cross.mT)

    def wrong(self, found: Tensor) -> float:
        """The mean energy of what outputs ``H z`` have wrong, biases fitted."""
        count = found.shape[2]
        cross = (found * self._cross[:, :, :count]).sum()
        square = ((found @ self._products[:, :count, :count]) * found).sum()
        return max(0.0, self._metric.variance - 2 * float(cross) + float(square))

    def shift(self, found: Tensor) -> Tensor:
        """``[groups, O]``, what the bias gains with outputs ``H z``."""
        return self._metric.centre - (found @ self._mean[:, : found.shape[2], None])[:, :, 0]


def leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of ``[groups, n, n]``, the largest first."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(1).clamp_min(0), vectors.flip(2)


def principal(matrix: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    r"""Orthonormal ``[groups, m, r]``, whose first columns span for each rank the best subspace for ``M p``.

    Args:
        matrix: M, ``[groups, m, n]``.
        second: ``[groups, n, n]``, the covariance of p.

    Returns:
        The energies along them, ``[groups, r]``, and the columns; r is the smaller one of m and n.
    """
    rows, columns = matrix.shape[1:]
    second = ridged(second)
    if rows <= columns:
        return leading(_even(matrix @ second @ matrix.mT))
    spread = matrix @ cholesky(second)  # its right singular vectors cost less, and tell the left ones
    values, vectors = leading(_even(spread.mT @ spread))
    return values, torch.linalg.qr(spread @ vectors).Q


def ridged(second: Tensor, ridge: float = RIDGE) -> Tensor:
    """A covariance ``[groups, n, n]`` with a ridge, relative to the mean of its diagonal."""
    level = second.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(second.shape[1], dtype=second.dtype, device=second.device)
    return second + torch.where(level > 0, level * ridge, 1.0)[:, None, None] * eye


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of ``[groups, n, n]``, positive but for rounding; more is added to the diagonal where it has to.

    Products that are kept in float32 are off by its roundoff.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    added = matrix.diagonal(dim1=1, dim2=2).abs().mean(1).clamp_min(1e-300) * 1e-13
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    while bool(info.any()):
        added = torch.where(info > 0, added * 100, 0.0)
        factor, info = torch.linalg.cholesky_ex(matrix + added[:, None, None] * eye)
    return factor


def product(parts: Sequence[Tensor]) -> Tensor:
    """The Khatri-Rao product: for each r the outer product of the columns r of ``[n_i, R]``, ``[prod n_i, R]``."""
    found = parts[0]
    for part in parts[1:]:
        found = (found[:, None] * part[None]).flatten(0, 1)
    return found


def _even(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _trace(matrix: Tensor | None) -> Tensor:
    assert matrix is not None
    return matrix.diagonal(dim1=1, dim2=2).sum(1)
