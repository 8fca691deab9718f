"""Long kernels are built and transformed once: structured ones, whose norm the first call fixes, and implicit ones."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.models.hyena import HyenaOperator
from examples.models.sgconv import GlobalConv
from rewrite import CaptureError, transform
from tests.passes.materialising import (
    assert_folds,
    assert_follows,
    assert_same,
    fold,
    run,
    seeded,
)

LENGTH = 20
LEFT = ["fft_rfft", "mul", "fft_irfft", "mul", "add"]  # the spectrum of the input, the product, and the skip


def structured(**options: Any) -> GlobalConv:
    """Three pieces of 4, 4 and 8 taps, or of 4, 8 and 16, for at most 16 steps."""
    return GlobalConv(3, 16, points=4, **{"decay": (1.5, 2.5), **options})


def signal(length: int = LENGTH, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, length)


OPTIONS = {
    f"{mode} {interpolation} {'both directions' if both else 'causal'}":
    {"mode": mode, "interpolation": interpolation, "bidirectional": both}
    for mode, interpolation, both in product(("cat", "sum"), ("linear", "nearest"), (False, True))
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_structured_kernels_and_their_spectra_are_folded_to_the_bit(name: str) -> None:
    fast = assert_folds(lambda: structured(**OPTIONS[name]), signal(), left=LEFT, warm=True)
    (spectrum,) = [buffer for buffer in fast.graph_module.buffers() if buffer.is_complex()]
    assert spectrum.shape == (3, LENGTH + 1)


def test_a_power_law_in_place_of_factors() -> None:
    assert_folds(lambda: structured(power=0.5), signal(), left=LEFT, warm=True)


def test_structured_kernels_follow_their_pieces() -> None:
    assert_follows(lambda: structured(bidirectional=True), signal(), warm=True)


def test_before_the_first_call_there_is_no_norm_and_capture_sets_none() -> None:
    model = seeded(structured, 0)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(CaptureError, match=r"'norm'.*'initialized' \(False, then True\).*call the model once"):
        fold(model, signal())
    with pytest.raises(CaptureError, match="call the model once"):
        transform(seeded(structured, 0).train(), signal())
    for name, tensor in model.state_dict().items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, state[name])
    run(model, signal())
    assert model.initialized
    assert_same(fold(model, signal()), model, signal())


def test_the_norm_stays_that_of_the_first_call() -> None:
    model = seeded(structured, 0, signal())
    norm = model.norm.clone()
    fast = fold(model, signal())
    with torch.no_grad():
        for piece in model.pieces:
            piece.mul_(3.0)
    assert_same(fast, model, signal())
    assert torch.equal(model.norm, norm)
    x = signal()
    with torch.no_grad():
        tripled = run(fast, x)[0] - x * model.skip[:, None]
        for piece in model.pieces:
            piece.div_(3.0)
        once = run(fast, x)[0] - x * model.skip[:, None]
    torch.testing.assert_close(tripled, 3 * once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_each_length_has_a_kernel_of_its_own(length: int) -> None:
    model = seeded(lambda: structured(bidirectional=True), 0, signal())
    fast = fold(model, signal())
    assert_same(fast, model, signal(length))
    assert_same(fast, model, signal())


def test_lags_of_both_kernels() -> None:
    """The kernel for what comes later begins one step ahead; each is cut at its end, and nothing wraps around."""
    model = seeded(lambda: structured(bidirectional=True), 0, signal()).double()
    fast = fold(model, signal().double())
    with torch.no_grad():
        now, later = (model.stretched() / model.norm).unbind(0)
    impulses = torch.eye(LENGTH, dtype=torch.float64)[:, None].expand(-1, 3, -1)  # one for each step
    response = run(fast, impulses)[0]
    expected = torch.zeros(LENGTH, 3, LENGTH, dtype=torch.float64)
    for s, t in product(range(LENGTH), range(LENGTH)):
        lag = t - s if t >= s else s - t - 1
        if lag < now.shape[-1]:
            expected[s, :, t] = (now if t >= s else later)[:, lag]
        if s == t:
            expected[s, :, t] += model.skip.detach()
    torch.testing.assert_close(response, expected, rtol=1e-9, atol=1e-11)


def test_the_folded_spectrum_is_causal() -> None:
    model = seeded(structured, 0, signal())
    fast = fold(model, signal())
    x = signal()
    other = x.clone()
    other[..., 11:] = 1e3
    a, b = run(fast, x)[0], run(fast, other)[0]
    torch.testing.assert_close(a[..., :11], b[..., :11], rtol=0, atol=1e-2)
    assert (a[..., 11:] - b[..., 11:]).abs().max() > 1e2


# -- implicit filters -------------------------------------------------------------------------------------------------


def implicit(order: int = 2) -> HyenaOperator:
    return HyenaOperator(3, LENGTH, order, width=6)


def sequence(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, 3)


LONG = ["mul", "fft_rfft", "mul", "fft_irfft", "mul", "add"]  # a gate, the convolution, and its skip


@pytest.mark.parametrize("order", [2, 3])
def test_implicit_filters_are_folded_to_the_bit(order: int) -> None:
    left = ["linear", "conv1d", *LONG * (order - 1), "mul", "linear"]
    assert_folds(lambda: implicit(order), sequence(), left=left)


def test_implicit_filters_follow_their_network() -> None:
    assert_follows(implicit, sequence())


def test_a_shorter_sequence_cuts_the_filter() -> None:
    model = seeded(implicit, 0)
    fast = fold(model, sequence())
    assert_same(fast, model, sequence(7))


class Squashed(nn.Module):
    """A long convolution whose kernel is smoothed and squashed: small taps are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        kernel = nn.functional.avg_pool1d(self.kernel, 3, 1, 1)
        kernel = torch.sign(kernel) * (kernel.abs() - 0.1).relu()
        size = 2 * x.shape[-1]
        spectrum = torch.fft.rfft(kernel, n=size)
        return torch.fft.irfft(torch.fft.rfft(x, n=size) * spectrum, n=size)[..., : x.shape[-1]]


def test_squashed_and_smoothed_kernels() -> None:
    assert_folds(Squashed, signal(), left=["fft_rfft", "mul", "fft_irfft"])
