r"""Products of the values under the taps of a depthwise kernel, channel by channel: what least squares need.

.. math:: R_c = E[p p^\top],\quad m_c = E[p],\quad p = \text{the } K_1 K_2 \text{ values under the kernel, zeros around}
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from rewrite.ops import Convolution

LARGEST = 169
"""Taps up to which all products are kept. Of larger kernels those are kept that depend on the distance of two taps."""

ENOUGH = 8192
"""Patches of a batch that are looked at, or those of one sample: more tell nothing new of so few taps."""

_CHUNK = 2**23
"""Elements that are unfolded at a time."""


class Patches:
    """The second moments of a depthwise convolution's patches.

    Of kernels of more than 169 taps only products by distance are kept, of all places where the kernel meets the image,
    with zeros around it: the border is then taken for interior, which it is for most outputs of images that are larger
    than the kernel, and the mean counts as zero, so that no bias is fitted.

    Args:
        conv: whose; of two dimensions, each channel its own.

    Attributes:
        count: the patches so far.
    """

    def __init__(self, conv: Convolution):
        self._kernel, self._dilation, self._stride = conv.kernel, conv.dilation, conv.stride
        self._padding = [amount for pair in reversed(conv.padding) for amount in pair]
        self.taps = math.prod(conv.kernel)
        self.is_full = self.taps <= LARGEST
        self.count = 0
        self._products: Tensor | None = None
        self._total: Tensor | None = None

    def add(self, *values: Tensor) -> None:
        """Add the patches of one batch ``[N, C, H, W]``."""
        (x,) = values
        x = F.pad(self._some(x.detach()), self._padding).double()
        products, total, count = self._full(x) if self.is_full else self._by_distance(x)
        self._products = products if self._products is None else self._products.add_(products)
        self._total = total if self._total is None else self._total.add_(total)
        self.count += count

    def _some(self, x: Tensor) -> Tensor:
        """Evenly spaced samples of a large batch."""
        places = zip(x.shape[2:], self._stride, strict=True)
        many = max(1, ENOUGH // max(1, math.prod(-(-size // step) for size, step in places)))
        return x if many >= len(x) else x[:: -(-len(x) // many)]

    def _full(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        n, _, height, width = x.shape
        many = max(1, _CHUNK // max(1, n * self.taps * height * width))
        products, totals, count = [], [], 0
        for part in x.split(many, 1):
            rows = F.unfold(part, self._kernel, self._dilation, 0, self._stride)
            rows = rows.reshape(n, part.shape[1], self.taps, -1).transpose(0, 1).transpose(1, 2).flatten(2)
            products.append(rows @ rows.transpose(1, 2))
            totals.append(rows.sum(2))
            count = rows.shape[2]
        return torch.cat(products), torch.cat(totals), count

    def _by_distance(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        reach = [d * (k - 1) for d, k in zip(self._dilation, self._kernel, strict=True)]
        size = [length + more for length, more in zip(x.shape[2:], reach, strict=True)]
        found = torch.zeros(x.shape[1], *(2 * r + 1 for r in reach), dtype=torch.float64, device=x.device)
        index = [torch.arange(-r, r + 1, device=x.device) % n for r, n in zip(reach, size, strict=True)]
        for sample in x.split(1):
            spectrum = torch.fft.rfft2(sample[0], s=size)
            lags = torch.fft.irfft2(spectrum.abs().square(), s=size)
            found += lags[:, index[0][:, None], index[1][None, :]]
        count = x.shape[0] * math.prod(n - r for n, r in zip(x.shape[2:], reach, strict=True))
        total = torch.zeros(x.shape[1], self.taps, dtype=torch.float64, device=x.device)
        return found, total, count

    @property
    def mean(self) -> Tensor:
        """``[C, taps]``."""
        assert self._total is not None
        return self._total / self.count

    def second(self, channels: slice = slice(None)) -> Tensor:
        """``[C, taps, taps]``, of some channels."""
        assert self._products is not None
        products = self._products[channels] / self.count
        if self.is_full:
            return products
        d1, d2 = self._dilation
        rows, columns = (torch.arange(k, device=products.device) for k in self._kernel)
        row = (d1 * (rows[:, None] - rows[None, :]) + d1 * (self._kernel[0] - 1))[:, None, :, None]
        column = (d2 * (columns[:, None] - columns[None, :]) + d2 * (self._kernel[1] - 1))[None, :, None, :]
        return products[:, row, column].reshape(len(products), self.taps, self.taps)
