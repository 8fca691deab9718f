"""Convolutions in the frequency domain, against the model, shifted copies and integers."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FftConvolution, FoldConstants
from passes.fft_convolution.blocks import blocks
from passes.fft_convolution.circle import Circle, fast_length
from passes.reparameterize.kernels import Taps
from rewrite import optimize
from rewrite.errors import RewriteError
from rewrite.offering import offers_in
from rewrite.testing import assert_rule
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.rewriting import Result, apply, assert_exact, rewrite

ANYWHERE = FftConvolution(saving=0)

MADE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one channel each": (nn.Conv1d(4, 4, 129, padding=64, groups=4), (2, 4, 300)),
    "two outputs each": (nn.Conv1d(3, 6, 129, padding=64, groups=3), (2, 3, 300)),
    "dense": (nn.Conv1d(3, 5, 301, padding=20), (2, 3, 700)),
    "groups": (nn.Conv1d(6, 4, 301, padding=20, groups=2, bias=False), (2, 6, 700)),
    "stride and dilation": (nn.Conv1d(4, 4, 200, 3, padding=9, dilation=2, groups=4), (2, 4, 900)),
    "images": (nn.Conv2d(4, 4, 31, padding=15, groups=4), (2, 4, 28, 29)),
    "padding by name, even": (nn.Conv2d(4, 8, (30, 17), padding="same", groups=4), (2, 4, 28, 31)),
    "images, dense": (nn.Conv2d(2, 3, (21, 15), (2, 1), padding=(7, 3)), (2, 2, 40, 31)),
    "volumes": (nn.Conv3d(2, 2, 9, padding=4, groups=2), (2, 2, 11, 10, 9)),
    "larger than the image": (nn.Conv2d(4, 4, 31, padding=15, groups=4), (2, 4, 14, 9)),
    "blocks": (nn.Conv1d(1, 1, 70, padding=5), (2, 1, 40_000)),
    "blocks, dense": (nn.Conv1d(2, 1, 70, 2, padding=3), (1, 2, 40_000)),
}


@pytest.mark.parametrize("name", MADE)
def test_every_geometry(name: str):
    model, shape = MADE[name]
    # libraries have no transform of an empty batch
    result = assert_rule(FftConvolution(), model.eval(), torch.randn(shape), matches=1, batches=(1, 5))
    assert not result.layers
    assert_exact(result, model, torch.randn(shape))
    assert ("unfold" in operators(result)) == name.startswith("blocks")


def operators(result: Result) -> list[str]:
    return [node.target._opname for node in result.graph.calls() if hasattr(node.target, "_opname")]


@pytest.mark.parametrize("dims", [1, 2])
def test_each_tap_is_a_shifted_copy(dims: int):
    """A mirrored, conjugated or misplaced kernel would shift another way."""
    kernel, padding, dilation = (3, 2)[:dims], (2, 0)[:dims], (2, 1)[:dims]
    x = torch.randn(1, 1, *(7, 6)[:dims], dtype=torch.float64)
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1](1, 1, kernel, padding=padding, dilation=dilation, bias=False).double()
    graph = rewrite(layer.eval(), ANYWHERE, x).graph
    padded = F.pad(x, [amount for pad in reversed(padding) for amount in (pad, pad)])
    for taps in itertools.product(*map(range, kernel)):
        weight = torch.zeros(1, 1, *kernel, dtype=torch.float64)
        weight[0, 0][taps] = 1
        found = graph.to_module({"weight": weight})(x)
        where = tuple(slice(d * i, d * i + size) for i, d, size in zip(taps, dilation, found.shape[2:], strict=True))
        torch.testing.assert_close(found[0, 0], padded[0, 0][where], rtol=0, atol=1e-12)


@given(
    size=st.integers(1, 9), taps=st.integers(1, 6), step=st.integers(1, 3), low=st.integers(0, 7),
    high=st.integers(0, 7), stride=st.integers(1, 3),
)  # fmt: skip
def test_the_circle_holds_the_padded_correlation(size: int, taps: int, step: int, low: int, high: int, stride: int):
    """In integers, tap by tap, for the smallest circle and for larger ones."""
    circle = Circle(size, Taps(taps, step, low, high), stride)
    if circle.dense < 1:
        return
    x, w = [7 * i + 1 for i in range(size)], [10**i for i in range(taps)]
    padded = [0] * low + x + [0] * high
    dense = [sum(w[i] * padded[u + step * i] for i in range(taps)) for u in range(circle.dense)]
    assert len(dense[::stride]) == circle.outputs
    for points in (circle.least, circle.least + 1, circle.period):
        around = x + [0] * (points - size)
        found = [sum(w[i] * around[(u - low + step * i) % points] for i in range(taps)) for u in range(points)]
        assert found[: circle.dense] == dense
        assert len({(low - step * i) % points for i in range(taps)}) == taps


@pytest.mark.parametrize(
    "circle", [Circle(20, taps) for taps in (Taps(8, 1, 7, 0), Taps(9, 1, 4, 4), Taps(5, 3, 0, 12))]
)
def test_a_smaller_circle_wraps(circle: Circle):
    taps = circle.taps
    x, w, points = torch.randn(circle.size), torch.randn(taps.count), circle.least - 1
    padded = F.pad(x, [taps.low, taps.high])
    dense = F.conv1d(padded[None, None], w[None, None], dilation=taps.step)[0, 0]
    around = F.pad(x, [0, points - circle.size])
    wrapped = sum(w[i] * around.roll(taps.low - taps.step * i) for i in range(taps.count))
    assert not torch.allclose(wrapped[: circle.dense], dense)


def test_lengths_are_fast_and_no_longer_than_needed():
    def is_fast(n: int) -> bool:
        for prime in (2, 3, 5, 7):
            while n % prime == 0:
                n //= prime
        return n == 1

    for least in (1, 2, 3, 11, 127, 1025, 4095, 8191):
        wanted = next(n for n in itertools.count(least) if n % 2 == 0 and is_fast(n))
        assert fast_length(least) == wanted
    with pytest.raises(ValueError, match="points are more than"):
        fast_length(2**27)


@given(size=st.integers(500, 20_000), taps=st.integers(2, 300), low=st.integers(0, 299))
def test_blocks_read_everything_once_and_its_border_twice(size: int, taps: int, low: int):
    circle = Circle(size, Taps(taps, 1, low, 0))
    if circle.dense < 1:
        return
    cut = blocks(circle)
    if cut is not None:
        assert cut.length == cut.period - taps + 1
        assert cut.length * (cut.count - 1) < circle.dense <= cut.length * cut.count
        assert cut.padded >= size + low
        assert cut.count * cut.period * math.log2(cut.period) < circle.period * math.log2(circle.period)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_transformed_in_float32(dtype: torch.dtype):
    model, x = nn.Conv1d(4, 4, 129, padding=64, groups=4).to(dtype).eval(), torch.randn(2, 4, 300, dtype=dtype)
    result = rewrite(model, FftConvolution(), x)
    found = apply(result.graph, FoldConstants()).graph.to_module()(x)
    truth = F.conv1d(x.double(), model.weight.double(), model.bias.double(), padding=64, groups=4)
    assert found.dtype == dtype
    assert ((found.double() - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + 1e-5).all()


def test_the_past_hears_of_the_future_no_more_than_rounding():
    model = nn.Conv1d(2, 2, 200, padding=199, groups=2).double().eval()
    x = torch.randn(1, 2, 400, dtype=torch.float64)
    program = rewrite(model, FftConvolution(), x).graph.to_module()
    later = x.clone()
    later[..., 300:] = 1e6
    change = (program(later) - program(x))[..., :300].abs().max()
    assert change <= 1e-8
    assert (model(later) - model(x))[..., :300].abs().max() == 0


def test_spectra_are_weights_and_follow_the_model():
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Conv1d(4, 4, 129, padding=64, groups=4), nn.ReLU()).eval(), torch.randn(2, 4, 300)
    fast = optimize(model, x, pipeline="fft-convolution, fold-constants", lower="eager", cache=False)
    assert any("causal convolution" in note for note in fast.report.notes)
    assert any(weight.is_complex() for weight in fast.graph_module.state_dict().values())
    for change in (lambda: None, lambda: model[0].weight.data.normal_(), lambda: model.double()):
        with torch.no_grad():
            change()
            given = x.to(model[0].weight.dtype)
            torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-4)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(DTYPES, 2)), ids=str)
def test_a_model_in_another_dtype_is_transformed_in_that(first: torch.dtype, second: torch.dtype):
    layers = nn.Conv1d(4, 4, 129, padding=64, groups=4), nn.Conv1d(4, 2, 3)
    model, x = nn.Sequential(*layers).to(first).eval(), torch.randn(2, 4, 300)
    fast = optimize(model, x.to(first), pipeline="fft-convolution, fold-constants", lower="eager", cache=False)
    model.to(second)
    with torch.no_grad():
        found, expected = fast(x.to(second)), copy.deepcopy(model).double()(x.to(second).double())
    assert found.dtype == second
    eps = max(torch.finfo(dtype).eps for dtype in (second, torch.float32))
    assert (found.double() - expected).abs().max() <= 8 * eps * expected.abs().max()


def test_a_result_of_its_own_is_not_converted_to_what_has_no_transform():
    model, x = nn.Conv1d(4, 4, 129, padding=64, groups=4).eval(), torch.randn(2, 4, 300)
    fast = optimize(model, x, pipeline="fft-convolution, fold-constants", lower="eager", cache=False)
    with pytest.raises(RewriteError, match="transforms in float32, and its weights were or are"):
        fast.half()(x.half())


def test_a_batch_of_none_is_not_transformed():
    model, x = nn.Conv1d(4, 4, 129, padding=64, groups=4).eval(), torch.randn(2, 4, 300)
    fast = optimize(model, x, pipeline="fft-convolution, fold-constants", lower="eager", cache=False)
    assert fast(x[:1]).shape == (1, 4, 300)
    assert fast(x[:0]).shape == (0, 4, 300)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_is_offered_says_the_costs():
    model, x = nn.Conv1d(4, 4, 129, padding=64, groups=4).eval(), torch.randn(2, 4, 300)
    graph = capture(model, (x,)).graph
    [offer] = offers_in(graph, [FftConvolution()], MatchVerifier())
    assert offer.before.flops == 2 * 129 * 300 * 4
    assert offer.after.flops < offer.before.flops / 2


class Dynamic(nn.Module):
    """Its kernel is a part of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, x[:1, :1, :100].expand(4, 1, 100), groups=4)


REFUSED: dict[str, tuple[nn.Module, Any, str]] = {
    "short": (
        nn.Conv1d(4, 4, 16, padding=2, groups=4), torch.randn(2, 4, 300),
        "transforms take 0.05841 million operations for each sample, and its 16 taps 0.03699 million",
    ),
    "transposed": (nn.ConvTranspose1d(4, 4, 129), torch.randn(2, 4, 300), "the convolution is transposed"),
    "no batch": (nn.Conv1d(4, 4, 129), torch.randn(4, 300), "the convolution's input has no batch dimension"),
    "a kernel from the input": (Dynamic(), torch.randn(2, 4, 300), "the kernel depends on the input"),
    "nothing": (nn.Conv1d(4, 4, 129, padding=64), torch.randn(0, 4, 300), "its input is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_reasons(name: str):
    model, x, reason = REFUSED[name]
    result = rewrite(model.eval(), FftConvolution(), x)
    assert not result.record.commits
    assert [refused.reason for refused in result.record.refused] == [reason]


@pytest.mark.parametrize(("rule", "taps"), [(FftConvolution(), 15), (ANYWHERE, 1)])
def test_a_handful_of_taps_is_not_spoken_of(rule: FftConvolution, taps: int):
    record = rewrite(nn.Conv1d(4, 4, taps).eval(), rule, torch.randn(2, 4, 30)).record
    assert not record.commits
    assert not record.refused
