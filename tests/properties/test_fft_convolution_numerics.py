"""Convolutions in the frequency domain: borders, taps, circles, blocks, gradients, and where errors and NaN go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FftConvolution
from passes.fft_convolution import circle as circles
from passes.fft_convolution import rule as module
from passes.fft_convolution.blocks import Blocks
from passes.fft_convolution.circle import Circle
from rewrite import transform
from rewrite.driver import Driver
from rewrite.testing import ConvSpec, assert_rule
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.drawn import COSTLY
from tests.passes.rewriting import rewrite

ANYWHERE = FftConvolution(saving=0)

EPS = torch.finfo(torch.float32).eps


MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def borders(draw: st.DrawFn, modes: Sequence[str] = MODES, groups: Sequence[int] = (4, 1, 2)) -> ConvSpec:
    """Odd and even kernels over four channels, many larger than the image, with every padding."""
    dims, mode = draw(st.sampled_from([1, 2])), draw(st.sampled_from(modes))
    each = []
    for _ in range(dims):
        size, taps, step = draw(st.integers(1, 9)), draw(st.integers(2, 8)), draw(st.integers(1, 2))
        extent = step * (taps - 1)
        most = {"reflect": size - 1, "circular": size}.get(mode, extent + 2)
        low, high = draw(st.integers(0, most)), draw(st.integers(0, most))
        assume(size + low + high > extent)
        each.append((size, taps, step, (low, high)))
    sizes, kernel, dilation, padding = zip(*each, strict=True)
    return ConvSpec(
        sizes=sizes, batch=draw(st.integers(1, 2)), groups=draw(st.sampled_from(groups)), kernel=kernel,
        dilation=dilation, stride=tuple(draw(st.integers(1, 3)) for _ in range(dims)), padding=padding,
        padding_mode=mode, seed=draw(st.integers(0, 9)),
    )  # fmt: skip


@given(borders())
@COSTLY
def test_every_border(spec: ConvSpec):
    """Against the model and its gradients, in float64 and in its own dtype."""
    assert_rule(ANYWHERE, spec.module(), spec.inputs(), matches=1, batches=(1, 5))


@given(borders(modes=["zeros"], groups=[4]), st.data())
@COSTLY
def test_a_kernel_of_one_tap_shifts(spec: ConvSpec, data: st.DataObject):
    """Of one channel to itself; a mirrored kernel, or one that is a step off, would shift another way."""
    x = torch.randn(spec.input_shape, dtype=torch.float64)
    assert not isinstance(spec.padding, str)
    padded = F.pad(x, [amount for pair in reversed(spec.padding) for amount in pair])
    kind = (nn.Conv1d, nn.Conv2d)[spec.dims - 1]
    layer = kind(4, 4, spec.kernel, spec.stride, 0, spec.dilation, 4, bias=False).double()
    graph = rewrite(layer.eval(), ANYWHERE, padded).graph
    tap = [data.draw(st.integers(0, count - 1)) for count in spec.kernel]
    weight = torch.zeros(4, 1, *spec.kernel, dtype=torch.float64)
    weight[(slice(None), 0, *tap)] = 1
    found = graph.to_module({"weight": weight})(padded)
    wanted = padded
    for dim, (at, step, stride) in enumerate(zip(tap, spec.dilation, spec.stride, strict=True), start=2):
        places = at * step + stride * torch.arange(found.shape[dim])
        wanted = wanted.index_select(dim, places)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@given(
    size=st.integers(2, 12), taps=st.integers(2, 8), step=st.integers(1, 3), padding=st.integers(0, 9),
    short=st.booleans(),
)  # fmt: skip
@COSTLY
def test_the_smallest_circle_is_exact_and_a_smaller_one_is_rejected(
    size: int, taps: int, step: int, padding: int, short: bool
):
    assume(size + padding > step * (taps - 1))  # else a tap may go that reads zeros alone
    model = nn.Conv1d(2, 2, taps, padding=padding, dilation=step, groups=2)
    graph = capture(model.eval(), (torch.randn(2, 2, size),)).graph
    with patch.object(circles, "fast_length", lambda points: points), patch.object(Circle, "least", _shortened(short)):
        record = Driver(graph, MatchVerifier()).run([ANYWHERE])[0]
    assert len(record.commits) == int(not short), record.rejections
    assert len(record.rejections) == int(short)


def _shortened(short: bool) -> property:
    least = Circle.least.fget
    assert least is not None
    return property(lambda self: least(self) - short)


@given(length=st.integers(2, 200), taps=st.integers(2, 120), where=st.floats(0, 1), seed=st.integers(0, 9))
@COSTLY
def test_the_past_hears_of_a_spike_no_more_than_its_rounding(length: int, taps: int, where: float, seed: int):
    """What lies before a spike differs by its rounding; the sum over taps does not differ at all."""
    torch.manual_seed(seed)
    model, x = nn.Conv1d(1, 1, taps, padding=taps - 1, bias=False).eval(), torch.randn(1, 1, length)
    at = min(length - 1, 1 + int(where * (length - 1)))
    later = x.clone()
    later[..., at] = 1e6
    program = rewrite(model, ANYWHERE, x).graph.to_module()
    with torch.no_grad():
        change = (program(later) - program(x))[..., :at].abs().max()
        norm = model.weight.norm()
        assert (model(later) - model(x))[..., :at].abs().max() == 0
    assert change <= 2 * EPS * 1e6 * max(1.0, math.log2(length + taps)) * norm


def test_a_spike_is_heard_of():
    """So that the bound above bounds something."""
    torch.manual_seed(0)
    model, x = nn.Conv1d(1, 1, 50, padding=49, bias=False).eval(), torch.randn(1, 1, 150)
    later = x.clone()
    later[..., 140] = 1e6
    program = rewrite(model, ANYWHERE, x).graph.to_module()
    assert (program(later) - program(x))[..., :140].abs().max() > 0


@given(
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)), kernel=st.tuples(st.integers(1, 5), st.integers(2, 5)),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]), at=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    place=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)  # fmt: skip
@COSTLY
def test_what_is_not_finite_anywhere_is_nan_in_its_row(
    size: tuple[int, int], kernel: tuple[int, int], bad: float, at: tuple[int, int], place: tuple[float, float]
):
    """Each channel of each sample on its own."""
    model = nn.Conv2d(3, 3, kernel, padding=(kernel[0] - 1, kernel[1] - 1), groups=3).eval()
    x = torch.randn(2, 3, *size)
    program = rewrite(model, ANYWHERE, x).graph.to_module()
    spoiled = x.clone()
    spoiled[(*at, *(int(share * n) for share, n in zip(place, size, strict=True)))] = bad
    before, after = program(x), program(spoiled)
    for row in itertools.product(range(2), range(3)):
        if row == at:
            assert after[row].isnan().all()
        else:
            torch.testing.assert_close(after[row], before[row])


@given(
    size=st.integers(1, 60), taps=st.integers(2, 20), low=st.integers(0, 20), more=st.integers(0, 30),
    shape=st.sampled_from([(2, 2, 2), (2, 2, 1), (1, 2, 1)]), stride=st.integers(1, 2),
)  # fmt: skip
@COSTLY
def test_blocks_of_every_length_give_the_same(
    size: int, taps: int, low: int, more: int, shape: tuple[int, int, int], stride: int
):
    """Sequences shorter than the kernel, or of one element, too."""
    assume(size + 2 * low >= taps)
    inputs, outputs, groups = shape
    model = nn.Conv1d(inputs, outputs, taps, stride, padding=low, groups=groups).eval()

    def cut(circle: Circle) -> Blocks:
        length = more + 1
        return Blocks(circle.reach + more, length, -(-circle.dense // length))

    with patch.object(module, "cut_of", lambda circles: cut(circles[0])):
        result = assert_rule(ANYWHERE, model, torch.randn(2, inputs, size), matches=1, batches=(1, 5))
    assert "unfold" in [node.target._opname for node in result.graph.calls() if hasattr(node.target, "_opname")]


def test_nan_reaches_the_blocks_that_read_it():
    """And no others, as it reaches no other rows."""
    model, x = nn.Conv1d(1, 1, 5, padding=2).eval(), torch.randn(1, 1, 64)
    with patch.object(module, "cut_of", lambda circles: Blocks(12, 8, 8)):
        program = rewrite(model, ANYWHERE, x).graph.to_module()
    x[..., 20] = math.nan
    # blocks of 8 outputs, of which one reads two elements before and two behind
    assert program(x)[0, 0].isnan().nonzero().flatten().tolist() == list(range(16, 24))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_gradients(dtype: torch.dtype, training: bool):
    """Of input, kernel and bias, through the result as through the model."""
    torch.manual_seed(1)
    model = nn.Conv1d(4, 6, 65, 2, padding=32, groups=2).to(dtype).train(training)
    x = torch.randn(3, 4, 200, dtype=dtype, requires_grad=True)
    step = transform(model, x.detach(), ANYWHERE)
    assert [commit.rule for record in step.report.records for commit in record.commits] == ["fft-convolution"]
    found, wanted = (_gradients(each, model, x) for each in (step, model))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 64 * torch.finfo(dtype).eps * b.norm()


def _gradients(function: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), [x, *model.parameters()]))
