"""Convolutions that modules compute by transforms themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fft, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Transformed(nn.Module):
    """``irfftn(rfftn(x) * rfftn(kernel))[..., start:end]`` over the last dimensions.

    Args:
        kernel: its shape, whose last dimensions are transformed.
        periods: points of the transforms.
        kept: the bounds of what is kept of each dimension; none for everything.
        norm: of all transforms.
        swapped: the kernel's spectrum is the left factor.
    """

    def __init__(
        self,
        kernel: Sequence[int],
        periods: Sequence[int],
        kept: Sequence[tuple[int | None, int | None]] = (),
        *,
        norm: str | None = None,
        swapped: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(kernel))
        self.kernel = nn.Parameter(torch.randn(*kernel, generator=generator, dtype=torch.float64).to(dtype))
        self.periods, self.kept, self.norm, self.swapped = list(periods), kept, norm, swapped

    def spectrum(self) -> Tensor:
        """That of the kernel."""
        return self.there(self.kernel)

    def there(self, x: Tensor) -> Tensor:
        """The spectrum of real numbers."""
        if len(self.periods) == 1:
            return fft.rfft(x, n=self.periods[0], norm=self.norm)
        if len(self.periods) == 2:
            return fft.rfft2(x, s=self.periods, norm=self.norm)
        return fft.rfftn(x, s=self.periods, dim=list(range(-len(self.periods), 0)), norm=self.norm)

    def back(self, x: Tensor) -> Tensor:
        """The real numbers of a spectrum."""
        if len(self.periods) == 1:
            return fft.irfft(x, n=self.periods[0], norm=self.norm)
        if len(self.periods) == 2:
            return fft.irfft2(x, s=self.periods, norm=self.norm)
        return fft.irfftn(x, s=self.periods, dim=list(range(-len(self.periods), 0)), norm=self.norm)

    def product(self, x: Tensor) -> Tensor:
        """Of both spectra."""
        return self.spectrum() * self.there(x) if self.swapped else self.there(x) * self.spectrum()

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(self.product(x))
        if not self.kept:
            return y
        return y[(..., *(slice(*bounds) for bounds in self.kept))]


class Shown(Transformed):
    """Returns a spectrum too."""

    def __init__(self, *args: Any, which: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.which = which

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        there, spectrum = self.there(x), self.spectrum()
        y = self.back(there * spectrum)
        shown = {"input": there, "kernel": spectrum, "outputs": y}[self.which]
        return y[..., slice(*self.kept[0])], torch.view_as_real(shown) if shown.is_complex() else shown.sum(-1)
