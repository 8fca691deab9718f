r"""The second moments of what a layer reads at once, about the mean: what least squares over its weights need.

.. math:: S = E[(p - m)(p - m)^\top],\quad m = E[p],\quad p = \text{the } C k \text{ values under the kernel}
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rewrite.ops import Convolution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from passes.affine import Layer

DOUBLE = 2500
"""Values under a kernel up to which their products are kept in float64; those of more are kept in float32."""

_CHUNK = 2**22
"""Elements that are taken at a time."""


class Patches:
    """The moments of a layer's patches, for each group of channels.

    The products are of differences from the mean of the first patches, so that float32 is precise enough.

    Args:
        layer: whose: a convolution, or a linear layer, whose patches are its rows.
        groups, features: of the channels; values under the kernel in a group.

    Attributes:
        count: the patches so far.
    """

    def __init__(self, layer: Layer, groups: int, features: int):
        self._layer, self._groups, self._features = layer, groups, features
        self._dtype = torch.float64 if features <= DOUBLE else torch.float32
        self.count = 0
        self._origin: Tensor | None = None
        self._total: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, *values: Tensor) -> None:
        """Add the patches of one batch: ``[N, C, *size]``, or ``[*, C]`` of a linear layer."""
        (x,) = values
        for rows in self._rows(x.detach()):
            if self._origin is None or self._total is None or self._products is None:
                self._origin = rows.mean(2)
                self._total = torch.zeros_like(self._origin, dtype=torch.float64)
                self._products = rows.new_zeros(self._groups, self._features, self._features)
            rows.sub_(self._origin[:, :, None])
            self._total += rows.sum(2, dtype=torch.float64)
            self._products.baddbmm_(rows, rows.mT)
            self.count += rows.shape[2]

    def _rows(self, x: Tensor) -> Iterator[Tensor]:
        """``[groups, features, some]``, a few at a time, copied."""
        conv = self._layer
        if not isinstance(conv, Convolution):
            for part in x.reshape(-1, self._features).split(max(1, _CHUNK // self._features)):
                yield part.to(self._dtype, copy=True).mT[None]
            return
        x = F.pad(x, [amount for pair in reversed(conv.padding) for amount in pair])
        n = conv.dims
        for d in range(n):
            x = x.unfold(2 + d, conv.dilation[d] * (conv.kernel[d] - 1) + 1, conv.stride[d])[..., :: conv.dilation[d]]
        order = (1, *range(n + 2, 2 * n + 2), 0, *range(2, n + 2))
        row = self._groups * self._features * math.prod(x.shape[3 : n + 2])
        lines = max(1, _CHUNK // max(1, row))
        for samples in x.split(max(1, lines // max(1, x.shape[2]))):
            for part in samples.split(lines, 2):
                taken = part.permute(order).reshape(self._groups, self._features, -1)
                yield taken.to(self._dtype, copy=True)

    @property
    def mean(self) -> Tensor:
        """``[groups, features]``."""
        assert self._origin is not None
        return self._origin.double() + self._offset

    @property
    def _offset(self) -> Tensor:
        assert self._total is not None
        return self._total / max(self.count, 1)

    def covariance(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of S at a time, ``[groups, some, features]``, in float64."""
        assert self._products is not None
        offset, many = self._offset, max(1, _CHUNK // (self._groups * self._features))
        for start in range(0, self._features, many):
            part = slice(start, min(start + many, self._features))
            yield part, self._products[:, part].double() / self.count - offset[:, part, None] * offset[:, None]

    def within(self, sizes: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
        """``[groups, n, n]``, the sum of S over equal places along the other axes than some.

        Args:
            sizes: of the axes that the features are made of: channels and the kernel's.
            axes: some of them, whose places make up the n, in order.
        """
        assert self._products is not None
        groups, n = self._groups, math.prod(sizes[a] for a in axes)
        others = [a for a in range(len(sizes)) if a not in axes]

        def summed(x: Tensor) -> Tensor:
            """From ``[groups, *sizes, *sizes]``."""
            for number, a in enumerate(reversed(others)):
                x = x.diagonal(dim1=1 + a, dim2=1 + a + len(sizes) - number)
                x = x.double().sum(-1)
            return x.reshape(groups, n, n)

        whole = summed(self._products.reshape(groups, *sizes, *sizes)) / self.count
        offset = self._offset.reshape(groups, *sizes).permute(0, *(1 + a for a in axes), *(1 + a for a in others))
        offset = offset.reshape(groups, n, -1)
        return whole - offset @ offset.mT
