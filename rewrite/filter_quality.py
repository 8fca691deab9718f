"""How good the filters of a convolution are, by its kernel alone: sparse, alike, as random ones, or orthogonal.

The measures of Gavrikov and Keuper, CNN Filter DB, CVPR 2022, defined also where theirs divide by zero. They do not
change where the whole kernel is scaled or its filters are reordered; sparsity and orthogonality do not where filters
change their signs one by one, and variety where all do. All is computed in float64, in pieces of bounded size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR_ZERO = 0.01
"""A filter is near zero where all its weights are less than this part of the layer's largest one."""

SPARSE = 0.5
"""From this share of filters near zero on a layer is sparse."""

LOW_VARIETY = 0.3
"""Below this share of the largest possible entropy the filters of a layer differ in few directions."""

RANDOM = 1.0
"""From this part of the entropy of random filters on those of a layer are random-like."""

PARALLEL = 0.5
"""Below this part of the orthogonality of random weights the output channels of a layer are far from orthogonal."""

MARKS = {
    "sparse": f"at least {100 * SPARSE:.0f} % of the filters are near zero",
    "low variety": f"filters differ in few directions: less than {LOW_VARIETY:g} of the largest possible entropy",
    "random-like": "filters vary as random ones do, as in a layer that is not trained, or too large",
    "not orthogonal": f"output channels resemble each other: below {PARALLEL:g} of the orthogonality of random weights",
}
"""What is said of a degenerate layer, and what it means."""

_PIECE = 2**22
"""So many numbers are worked on at once."""

_BLOCK = 2048
"""So many output channels are compared with as many at once."""


@dataclass(frozen=True)
class FilterQuality:
    """The quality of one layer's filters. A filter is what one output channel does with one input channel.

    Attributes:
        name: of the layer.
        shape: of its kernel, as the convolution has it.
        groups: of channels.
        parameters: the number of weights in the kernel.
        filters: the number of filters.
        sparsity: the share of filters whose weights are all less than :data:`NEAR_ZERO` of the layer's largest one;
            1 for a kernel of zeros.
        entropy: of the variance of the filters over its principal directions, in decimal digits: 0 where all lie on a
            line, log10(taps) where they vary alike in all directions. 0 also where they do not vary by more than
            their dtype rounds; None for one tap, which has one direction.
        dense_entropy: the same of the filters that are not near zero.
        variety: the entropy as a share of the largest that so many taps and filters can have; None where they have
            fewer than three directions.
        randomness: the entropy divided by that of as many random filters, :func:`random_entropy`; None for what that
            was not fitted to, kernels that are not 3x3 or have no more filters than taps.
        orthogonality: one less the mean of abs(cos) between the weights of two output channels, a channel of zeros as
            in :func:`orthogonality`. Of grouped layers this tells how alike kernels are, not outputs.
        marks: what is degenerate, of :data:`MARKS`.
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    parameters: int
    filters: int
    sparsity: float
    entropy: float | None
    dense_entropy: float | None
    variety: float | None
    randomness: float | None
    orthogonality: float
    marks: tuple[str, ...] = ()

    @property
    def badness(self) -> tuple[int, int]:
        """Orders layers: by the number of marks, then by size."""
        return len(self.marks), self.parameters


def filter_quality(name: str, weight: Tensor, groups: int = 1, transposed: bool = False) -> FilterQuality:
    """Measure a kernel; it is only read.

    Args:
        name: of the layer.
        weight: the kernel, ``[O, C / groups, *size]``; ``[C, O / groups, *size]`` where ``transposed``. Finite, and not
            empty.
        groups: of channels.
        transposed: whether it is of a transposed convolution.
    """
    weight = weight.detach()
    taps = math.prod(weight.shape[2:])
    rows = weight.reshape(-1, taps)
    largest = max(float(part.abs().max()) for part in _pieces(rows))
    zero = near_zero(rows, largest)
    bound = min(taps, len(rows) - 1)
    entropy = variance_entropy(rows, largest)
    dense = variance_entropy(rows[~zero], largest) if zero.any() else entropy
    square = tuple(weight.shape[2:]) == (3, 3) and len(rows) > taps
    randomness = entropy / random_entropy(len(rows)) if entropy is not None and square else None
    variety = entropy / math.log10(bound) if entropy is not None and bound > 2 else None
    sparsity = int(zero.sum()) / len(rows)
    channels = _by_output(weight, groups) if transposed else weight.flatten(1)
    orthogonal = orthogonality(channels, largest)
    found = {
        "sparse": sparsity >= SPARSE,
        "low variety": variety is not None and variety < LOW_VARIETY,
        "random-like": randomness is not None and randomness >= RANDOM,
        "not orthogonal": groups == 1 and orthogonal < PARALLEL * random_orthogonality(channels.shape[1]),
    }
    return FilterQuality(
        name, tuple(weight.shape), groups, weight.numel(), len(rows), sparsity, entropy, dense, variety, randomness,
        orthogonal, tuple(mark for mark, holds in found.items() if holds),
    )  # fmt: skip


def random_entropy(filters: int) -> float:
    """The entropy from which on so many 3x3 filters count as random; the fit of Gavrikov and Keuper, 2022.

    The entropy of normally distributed filters is 1.00 to 1.05 times as large for 32 filters and more, more for fewer.
    """
    return 1.2618 / (1 + math.exp(-0.88768 * (math.log2(filters) - 2.30436))) - 0.31051


def random_orthogonality(width: int) -> float:
    """The expected :func:`orthogonality` of normally distributed rows: 0 for one number, 0.58 for 4, 0.87 for 36."""
    return 1 - math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def near_zero(rows: Tensor, largest: float) -> Tensor:
    """Which filters are near zero, all of a kernel of zeros.

    Args:
        rows: the filters, ``[filters, taps]``.
        largest: the largest absolute weight.
    """
    if not largest:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    small = torch.cat([part.abs().amax(1) < NEAR_ZERO * largest for part in _pieces(rows)])
    return small.to(rows.device)


def variance_entropy(rows: Tensor, largest: float) -> float | None:
    r"""The entropy of the filters' variance over its principal directions, None for one tap.

    .. math:: H = -\sum_i p_i \log_{10} p_i,\quad p_i = s_i^2 / \sum_j s_j^2

    with the singular values s of the filters less their mean. There is none, and H = 0, where no weight differs from
    the mean by more than twice the rounding of the largest one in the dtype.

    Args:
        rows: the filters, ``[filters, taps]``.
        largest: the largest absolute weight of the layer.
    """
    filters, taps = rows.shape
    if taps == 1:
        return None
    if not filters or not largest:
        return 0.0
    upright = filters >= taps
    mean = sum(part.sum(0) / largest for part in _pieces(rows)) / filters if upright else None
    triangle, spread = torch.empty(0, min(filters, taps), dtype=_double(rows.dtype)), 0.0
    for part in _pieces(rows if upright else rows.T, max(1, min(filters, taps))):
        part = part / largest
        part = part - (part.mean(1, keepdim=True) if mean is None else mean)
        spread = max(spread, float(part.abs().max()))
        # what is the same up to a rotation has the same singular values
        triangle = torch.linalg.qr(torch.cat([triangle, part]), mode="r").R
    if spread <= 2 * _rounding(rows.dtype):
        return 0.0
    squares = torch.linalg.svdvals(triangle / spread).square()
    shares = squares / squares.sum()
    return max(0.0, -float(torch.special.xlogy(shares, shares).sum()) / math.log(10))


def orthogonality(matrix: Tensor, largest: float) -> float:
    r"""How orthogonal rows are, from 0 for parallel ones to 1 for orthogonal ones.

    .. math:: 1 - \frac{1}{O (O - 1)} \sum_{i,j} |F F^* - I|_{ij}

    where the rows of F are those of the matrix, of length one. A row of zeros stays one, which only its place on the
    diagonal counts against. It is 1 for a single row, and 0 for a matrix of zeros.

    Args:
        matrix: ``[O, weights of an output channel]``.
        largest: its largest absolute element.
    """
    count, width = matrix.shape
    if not largest:
        return 0.0
    if count == 1:
        return 1.0
    step = max(1, min(_BLOCK, _PIECE // width))
    total = 0.0
    for i in range(0, count, step):
        rows = _unit(matrix[i : i + step], largest)
        total += float((rows @ rows.mH - torch.eye(len(rows), dtype=rows.dtype)).abs().sum())
        for j in range(i + step, count, step):
            total += 2 * float((rows @ _unit(matrix[j : j + step], largest).mH).abs().sum())
    return min(1.0, max(0.0, 1 - total / (count * (count - 1))))


def _by_output(weight: Tensor, groups: int) -> Tensor:
    """The weights of each output channel of a transposed convolution as a row."""
    inputs, outputs = weight.shape[:2]
    parts = weight.reshape(groups, inputs // groups, outputs, -1).transpose(1, 2)
    return parts.reshape(groups * outputs, -1)


def _unit(rows: Tensor, largest: float) -> Tensor:
    """Rows in float64 of length one, those of zeros as they are."""
    rows = rows.cpu().to(_double(rows.dtype)) / largest
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def _pieces(matrix: Tensor, least: int = 1) -> Iterator[Tensor]:
    """Some rows at a time, in float64 on the CPU.

    Args:
        matrix: not empty.
        least: how many rows a piece has, where there are so many.
    """
    for part in matrix.split(max(least, _PIECE // matrix.shape[1])):
        yield part.cpu().to(_double(part.dtype))


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
