"""Where transforms in a model stay as they are, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fft, nn

from passes import ShrinkTransform
from tests.passes.rewriting import rewrite
from tests.passes.transforming import Shown, Transformed

r = torch.randn

CAUSAL = ((0, 50),)


class Correlated(Transformed):
    """With the conjugate of the spectrum: a correlation."""

    def spectrum(self) -> Tensor:
        return self.there(self.kernel).conj()


class Magnitude(Transformed):
    """With a spectrum without phases."""

    def spectrum(self) -> Tensor:
        return self.there(self.kernel).abs()


class Inverse(Transformed):
    """Divided by the spectrum."""

    def product(self, x: Tensor) -> Tensor:
        return self.there(x) / self.spectrum()


class Reciprocal(Transformed):
    """With one over the spectrum."""

    def spectrum(self) -> Tensor:
        return 1.0 / self.there(self.kernel)


class Stored(Transformed):
    """With a spectrum that is a parameter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kernel = nn.Parameter(self.there(self.kernel.detach()))

    def spectrum(self) -> Tensor:
        return self.kernel


class Gated(Transformed):
    """With a kernel that depends on the input."""

    def product(self, x: Tensor) -> Tensor:
        return self.there(x) * self.there(self.kernel * x.mean())


class Turning(Transformed):
    """With another factor for each frequency."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.turn = nn.Parameter(r(self.periods[0] // 2 + 1))

    def spectrum(self) -> Tensor:
        return self.there(self.kernel) * self.turn


class Call(nn.Module):
    """A function of the input and a kernel of nine taps for each of four channels."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel, self.function = nn.Parameter(r(4, 9)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.kernel)


def complex_kernel(x: Tensor, k: Tensor) -> Tensor:
    spectrum = fft.fft(torch.complex(k, k), n=100)[..., :51]
    return fft.irfft(fft.rfft(x, n=100) * spectrum, n=100)[..., :50]


def complex_input(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.fft(x, n=100)[..., :51].contiguous() * fft.rfft(k, n=100), n=100)[..., :50]


def complex_transform(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.fft(x, n=51) * fft.rfft(k, n=100), n=100)[..., :50]


def other_length(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.rfft(x, n=100) * fft.rfft(k, n=100), n=101)[..., :50]


def other_parity(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.rfft(x, n=101) * fft.rfft(k, n=100), n=101)[..., :50]


def other_dim(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.rfft(x.mT, n=100, dim=-2) * fft.rfft(k, n=100).mT, n=100, dim=-2)[:, :50]


def other_order(x: Tensor, k: Tensor) -> Tensor:
    there = fft.rfft2(x, s=(20, 100), dim=(-1, -2))
    return fft.irfft2(there * fft.rfft2(k, s=(20, 100), dim=(-1, -2)), s=(20, 100), dim=(-1, -2))


def kernel_in_double(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.rfft(x, n=100) * fft.rfft(k.double(), n=100), n=100)[..., :50]


def fixed_spectrum(x: Tensor, k: Tensor) -> Tensor:
    return fft.irfft(fft.rfft(x, n=100) * fft.rfft(k, n=100).expand(4, 51), n=100)[..., :50]


KEPT: dict[str, tuple[nn.Module, Any, str]] = {
    "wraps": (Transformed((4, 9), [50], ((0, 50),)), r(2, 4, 50),
              "it is a circular convolution: 50 points wrap around into outputs that are kept, for its input has 50"),
    "wraps into one": (Transformed((4, 9), [50], ((7, 50),)), r(2, 4, 50), "it is a circular convolution"),
    "wraps by one": (Transformed((4, 9), [57], ((0, 50),)), r(2, 4, 50), "57 points wrap around"),
    "wraps along one dimension": (Transformed((4, 3, 5), [24, 15], ((0, 12), (0, 13))), r(2, 4, 12, 13),
                                  "15 points wrap around into outputs that are kept, for its input has 13"),
    "zeros alone": (Transformed((4, 9), [100], ((58, 80),)), r(2, 4, 50), "it keeps zeros alone"),
    "the smallest": (Transformed((4, 50), [100], ((0, 50),)), r(2, 4, 50),
                     "and the sum over 50 taps takes 0.02 million operations for each sample instead of 0.01451"),
    "conjugate": (Correlated((4, 9), [100], CAUSAL), r(2, 4, 50), "is not computed from a kernel by rfft alone"),
    "no phases": (Magnitude((4, 9), [100], CAUSAL), r(2, 4, 50), "is not computed from a kernel by rfft alone"),
    "reciprocal": (Reciprocal((4, 9), [100], CAUSAL), r(2, 4, 50), "is not computed from a kernel by rfft alone"),
    "by frequency": (Turning((4, 9), [100], CAUSAL), r(2, 4, 50), "is not computed from a kernel by rfft alone"),
    "expanded": (Call(fixed_spectrum), r(2, 4, 50), "is not computed from a kernel by rfft alone"),
    "stored": (Stored((4, 9), [100], CAUSAL), r(2, 4, 50), "the spectrum is a weight"),
    "complex kernel": (Call(complex_kernel), r(2, 4, 50), "is not computed from a kernel by rfft alone"),
    "from the input": (Gated((4, 9), [100], CAUSAL), r(2, 4, 50),
                       "the spectrum that it is multiplied by depends on the input"),
    "complex transform": (Call(complex_transform), r(2, 4, 50), "is not one of real numbers"),
    "back over other points": (Call(other_length), r(2, 4, 50), "over 100 points, and back over 101"),
    "kernel over other points": (Call(other_parity), r(2, 4, 50), "over 101 points, and its kernel over 100"),
    "another dimension": (Call(other_dim), r(2, 4, 50), "not transformed along the last dimensions, in order"),
    "another order": (Call(other_order), r(2, 4, 50), "not transformed along the last dimensions, in order"),
    "two dtypes": (Call(kernel_in_double), r(2, 4, 50), "its kernel is torch.float64, and its input torch.float32"),
    "no taps": (Transformed((4, 0), [100], CAUSAL), r(2, 4, 50), "its input or its kernel is empty"),
    "no elements": (Transformed((4, 9), [100], CAUSAL), r(2, 4, 0), "its input or its kernel is empty"),
    "the input's spectrum is read": (Shown((4, 9), [100], CAUSAL, which="input"), r(2, 4, 50),
                                     "is also read elsewhere"),
    "the kernel's spectrum is read": (Shown((4, 9), [100], CAUSAL, which="kernel"), r(2, 4, 50),
                                      "is also read elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_reasons(name: str):
    model, x, reason = KEPT[name]
    result = rewrite(model.eval(), ShrinkTransform(), x)
    assert not result.record.commits
    assert [reason in refused.reason for refused in result.record.refused] == [True], result.record.refused


NOT_BEGUN: dict[str, nn.Module] = {
    "divided by a spectrum": Inverse((4, 9), [100], CAUSAL),
    "another transform and a part of it": Call(complex_input),
    "no product": Call(lambda x, k: fft.irfft(fft.rfft(x), n=50)),
    "a filter in the frequency domain": Call(lambda x, k: fft.irfft(fft.rfft(x) * 0.5, n=50) + k[0, 0]),
    "divided by zero": Call(lambda x, k: fft.irfft(fft.rfft(x, n=100) * fft.rfft(k, n=100) / 0, n=100)),
    "weights alone": Call(lambda x, k: x[..., :9] + fft.irfft(fft.rfft(k) * fft.rfft(k), n=9)),
}


@pytest.mark.parametrize("name", NOT_BEGUN)
def test_what_is_no_product_of_spectra_is_not_spoken_of(name: str):
    record = rewrite(NOT_BEGUN[name].eval(), ShrinkTransform(), r(2, 4, 50)).record
    assert not record.commits
    assert not record.refused
