r"""What a change of a layer's weights changes of its outputs, and least squares in that metric.

.. math:: E\,|D (p - m)|^2 = \operatorname{tr} D S D^\top

for weights that differ by D, the bias taking what the mean makes of it. Solutions are of S shrunk to a multiple of the
identity, by as much as few patches ask for (oracle approximating shrinkage; Chen, Wiesel, Eldar and Hero, Shrinkage
Algorithms for MMSE Covariance Estimation, 2010), so that less is fitted to chance: of directions that the data hardly
shows, such as channels that are always zero, the weights are kept as well as they can be. Errors are of S as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from passes.positive import RIDGE, cholesky, ridged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.low_rank_approximation.patches import Patches
    from rewrite.approximation.statistics import Moments

_MOST = 0.9


class Metric:
    """The weights of a layer and what they make of its data; from :func:`of_patches` or :func:`of_outputs`.

    Attributes:
        weight: ``[groups, O, C, *kernel]``, in float64, O and C of a group.
        flat: ``[groups, O, features]``, the same.
        centre: ``[groups, O]``, the mean of the outputs without the bias.
        variance: that of the outputs, of all channels together.
        energy: the mean square of the outputs, of all channels together.
        ridge: ``[groups, 1, 1]``, what is added to the diagonal of S where weights are solved for.
        dtype: what fitted weights are rounded to.
        patches: moments of what the layer reads, where they are known.
    """

    def __init__(self, weight: Tensor, bias: Tensor, centre: Tensor, ridge: Tensor, dtype: torch.dtype):
        self.weight, self.flat, self.centre, self.dtype = weight, weight.flatten(2), centre, dtype
        self.ridge = torch.where(ridge > 0, ridge, 1.0)[:, None, None]
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
    trace, squares = flat.new_zeros(len(flat)), flat.new_zeros(len(flat))
    for part, rows in patches.covariance():
        products[:, :, part] = flat @ rows.mT
        trace += rows[:, :, part].diagonal(dim1=1, dim2=2).sum(1)
        squares += rows.square().sum((1, 2))
    centre = (flat @ patches.mean[:, :, None])[:, :, 0]
    ridge = trace / flat.shape[2] * _shrinkage(trace, squares, flat.shape[2], patches.count)
    return Metric(weight, bias, centre, ridge, dtype).see(products=products, patches=patches)


def _shrinkage(trace: Tensor, squares: Tensor, size: int, count: int) -> Tensor:
    """The ridge that shrinks a covariance best, relative to the mean of its diagonal.

    Args:
        trace, squares: of it, ``[groups]``; the sum of squares of its elements.
        size: its rows.
        count: samples that it was estimated from.
    """
    apart = squares - trace.square() / size  # from a multiple of the identity
    part = ((1 - 2 / size) * squares + trace.square()) / ((count + 1 - 2 / size) * apart)
    part = torch.where(apart > 0, part, _MOST).clamp(0, _MOST)
    found: Tensor = (part / (1 - part)).clamp_min(RIDGE)
    return found


def of_outputs(weight: Tensor, bias: Tensor, seen: Moments, dtype: torch.dtype) -> Metric:
    """From the moments of all outputs of a layer, which tell their best subspaces; see :func:`of_patches`."""
    groups, outputs = weight.shape[:2]
    blocks = seen.covariance.reshape(groups, outputs, groups, outputs).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    squares = weight.square().flatten(1).sum(1)
    level = torch.where(squares > 0, _trace(blocks) / squares, 0.0)
    centre = seen.mean.reshape(groups, outputs) - bias
    return Metric(weight, bias, centre, level * RIDGE, dtype).see(spread=_even(blocks))


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
        """``[groups, R, R]``, whose product with an identity over the places is T T^T."""
        found: Tensor = self.matrix @ self.matrix.mT
        return found


class Regression:
    """The layer's outputs, or orthonormal combinations U of them, by least squares from the first of some features.

    All is from one Cholesky factor, whose leading blocks are those of the leading features.
    """

    def __init__(self, metric: Metric, projection: Projection):
        patches, flat, gram = metric.known, metric.flat, projection.gram()
        reduced = [projection.of(rows) for _, rows in patches.covariance()]
        products = torch.cat(reduced, 1)  # S T^T
        matrix = _even(projection.of(products.mT))
        groups, rank = gram.shape[:2]
        places = matrix.shape[1] // rank
        by_place = matrix.view(groups, rank, places, rank, places).diagonal(dim1=2, dim2=4)
        by_place += metric.ridge[..., None] * gram[..., None]
        self._metric, self._gram, self._places = metric, gram, places
        self._plain = projection.of(flat)
        self._factor = cholesky(matrix)
        cross = flat @ products + metric.ridge * self._plain
        self._solved = torch.linalg.solve_triangular(self._factor, cross.mT, upper=False)
        self._mean = projection.of(patches.mean[:, None])[:, 0]

    def explained(self, count: int) -> Tensor:
        """``[groups, O, O]``, the covariance of the outputs that so many features explain."""
        some = self._solved[:, :count]
        found: Tensor = some.mT @ some
        return found

    def solve(self, count: int, basis: Tensor | None = None) -> tuple[Tensor, float]:
        """``H = [groups, O or r, count]``, and the mean energy of what ``H z``, or ``U H z``, has wrong, biases fitted.

        Args:
            count: features.
            basis: U, ``[groups, O, r]``; None for all outputs.
        """
        some, plain = self._solved[:, :count], self._plain[:, :, :count]
        if basis is not None:
            some, plain = some @ basis, basis.mT @ plain
        found: Tensor = torch.linalg.solve_triangular(self._factor[:, :count, :count].mT, some, upper=True).mT
        rank = count // self._places
        by_place = found.reshape(*found.shape[:2], rank, self._places)
        square = torch.einsum("gorp,grs,gosp->g", by_place, self._gram[:, :rank, :rank], by_place)
        ridged = (2 * (found * plain).flatten(1).sum(1) - square) * self._metric.ridge.flatten()
        return found, max(0.0, self._metric.variance - float(some.square().sum()) + float(ridged.sum()))

    def shift(self, found: Tensor, basis: Tensor | None = None) -> Tensor:
        """``[groups, O]``, what the bias gains with outputs ``H z``, or ``U H z``."""
        given = found @ self._mean[:, : found.shape[2], None]
        return self._metric.centre - (given if basis is None else basis @ given)[:, :, 0]


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
