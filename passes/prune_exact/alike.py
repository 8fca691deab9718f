r"""Which channels of a value are multiples of each other: :math:`y_i = a\, y_j` for every input.

Ratios are computed in float64. For weights of 32 bits or fewer two ratios are equal there only if they are equal in
real arithmetic, because those of 24-bit numbers differ by more than the rounding of their quotient; for float64 weights
they may differ in the last digit, as any product with them may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

_SAMPLED = 16
"""So many entries of each row tell most rows apart."""


@dataclass(frozen=True, eq=False)
class Alike:
    """Channels in groups of multiples.

    Attributes:
        root: for each channel the first one of its group.
        factor: what the root is to be multiplied by, never zero; one for roots.
    """

    root: Tensor
    factor: Tensor

    @classmethod
    def apart(cls, count: int) -> Alike:
        """Every channel by itself."""
        return cls(torch.arange(count), torch.ones(count, dtype=torch.float64))

    def with_constants(self, constant: Tensor) -> Alike:
        """With all constants other than zero multiples of each other, and all zeros equal; NaN is no constant."""
        root, factor = self.root.clone(), self.factor.clone()
        for chosen in (torch.isfinite(constant) & (constant != 0), constant == 0):
            known = chosen.nonzero()[:, 0]
            if len(known):
                first = constant[known[0]]
                root[known], factor[known] = known[0], constant[known] / first if first else 1.0
        usable = torch.isfinite(factor) & (factor != 0)
        return Alike(torch.where(usable, root, torch.arange(len(root))), torch.where(usable, factor, 1.0))

    def both(self, other: Alike) -> Alike:
        """The multiples that are multiples in both."""
        return grouped(list(zip(self.root.tolist(), other.root.tolist(), strict=True)), self.factor)


def grouped(keys: Sequence[Hashable], size: Tensor) -> Alike:
    """Channels of equal keys are multiples of each other, in the ratio of their sizes; those of the key None are apart.

    So are those whose size is zero or not finite.
    """
    count = len(keys)
    root = list(range(count))
    first: dict[Hashable, int] = {}
    known = (torch.isfinite(size) & (size != 0)).tolist()
    for i, key in enumerate(keys):
        if key is not None and known[i]:
            root[i] = first.setdefault(key, i)
    roots = torch.tensor(root, dtype=torch.int64)
    factor = torch.where(roots == torch.arange(count), 1.0, size / size[roots])
    usable = torch.isfinite(factor) & (factor != 0)
    return Alike(torch.where(usable, roots, torch.arange(count)), torch.where(usable, factor, 1.0))


def collinear(keys: Sequence[Hashable], rows: Tensor) -> Alike:
    """Rows of equal keys that are multiples of each other. Rows of zeros, or with infinite or NaN entries, are apart.

    Args:
        keys: one for each row.
        rows: ``[C, n]``.
    """
    count, width = rows.shape
    if not count or not width:
        return Alike.apart(count)
    pivot = rows.gather(1, (rows != 0).to(torch.int8).argmax(1, keepdim=True)).double()
    sampled = torch.linspace(0, width - 1, min(width, _SAMPLED)).long()
    candidates: dict[Hashable, list[int]] = {}
    for i, sample in enumerate((rows[:, sampled] / pivot).tolist()):
        candidates.setdefault((keys[i], *sample), []).append(i)
    full: list[Hashable] = [None] * count
    for members in candidates.values():
        if len(members) > 1:
            for i, direction in zip(members, (rows[members] / pivot[members]).tolist(), strict=True):
                full[i] = (keys[i], *direction)
    size = pivot[:, 0].clone()
    size[~torch.isfinite(rows).all(1)] = 0
    return grouped(full, size)
