"""Convolutions by transforms in the model, over fewer points and as sums over taps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fft, nn
from torch.nn import functional as F

from examples.models import load
from passes import FftConvolution, FoldConstants, ShrinkTransform
from passes.fft_convolution import circle
from passes.fft_convolution.circle import Circle
from passes.shrink_transform.line import Line
from rewrite import offers, optimize, transform
from rewrite.driver import Driver
from rewrite.testing import assert_rule
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.rewriting import Result, assert_exact, rewrite
from tests.passes.transforming import Shown, Transformed

SHORTER, TAPS = ShrinkTransform(direct=0), ShrinkTransform(direct=1e9)

r = torch.randn


def operators(result: Result) -> list[str]:
    """Those that depend on the input."""
    graph = result.graph
    varying = (node.target for node in graph.calls() if not graph.is_constant(node))
    return [target._opname for target in varying if hasattr(target, "_opname")]


class Scaled(Transformed):
    """Divided by the number of points as Hyena divides, with factors in other places too."""

    def spectrum(self) -> Tensor:
        return 2 * (self.there(self.kernel) / self.periods[0])

    def back(self, x: Tensor) -> Tensor:
        return fft.irfft(3 * (x / 4), n=self.periods[0], norm="forward")


class ScaledByChannel(Transformed):
    """A real factor for each channel, behind another shape."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(r(self.kernel.shape[0], 1))

    def spectrum(self) -> Tensor:
        return (self.there(self.kernel) * self.gain)[None]


class Padded(Transformed):
    """Input and kernel with zeros behind them, so that the transforms need no lengths."""

    def there(self, x: Tensor) -> Tensor:
        return fft.rfft(F.pad(x, (0, self.periods[0] - x.shape[-1])))

    def back(self, x: Tensor) -> Tensor:
        return fft.irfft(x)


CAUSAL = ((0, 50),)

MADE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "causal": (Transformed((4, 9), [100], CAUSAL), (2, 4, 50)),
    "kernel on the left": (Transformed((4, 9), [100], CAUSAL, swapped=True), (2, 4, 50)),
    "ortho": (Transformed((4, 9), [100], CAUSAL, norm="ortho"), (2, 4, 50)),
    "forward": (Transformed((4, 9), [100], CAUSAL, norm="forward"), (2, 4, 50)),
    "as Hyena scales": (Scaled((4, 9), [100], CAUSAL), (2, 4, 50)),
    "scaled by channel": (ScaledByChannel((4, 9), [100], CAUSAL), (2, 4, 50)),
    "zeros appended": (Padded((4, 9), [100], CAUSAL), (2, 4, 50)),
    "odd": (Transformed((4, 9), [77], CAUSAL), (2, 4, 50)),
    "negative bounds": (Transformed((4, 9), [100], ((-90, -40),)), (2, 4, 50)),
    "one end": (Transformed((4, 9), [100], ((3, None),)), (2, 4, 50)),
    "the middle, wrapped outside": (Transformed((4, 9), [50], ((8, None),)), (2, 4, 50)),
    "the tail alone": (Transformed((4, 9), [100], ((30, 50),)), (2, 4, 50)),
    "beyond the end": (Transformed((4, 9), [100], ((40, 90),)), (2, 4, 50)),
    "an input that is cut": (Transformed((4, 9), [60], ((8, 50),)), (2, 4, 70)),
    "a kernel that is cut": (Transformed((4, 70), [66], ((49, None),)), (2, 4, 50)),
    "one tap": (Transformed((4, 1), [100], CAUSAL), (2, 4, 50)),
    "one kernel for all": (Transformed((9,), [100], CAUSAL), (2, 4, 50)),
    "one kernel for all, shaped": (Transformed((1, 1, 9), [100], CAUSAL), (2, 4, 50)),
    "one input, many kernels": (Transformed((4, 9), [100], CAUSAL), (2, 1, 50)),
    "heads": (Transformed((3, 4, 9), [100], CAUSAL), (2, 3, 4, 50)),
    "heads that share kernels": (Transformed((4, 9), [100], CAUSAL), (2, 3, 4, 50)),
    "heads that share one kernel": (Transformed((3, 1, 9), [100], CAUSAL), (2, 3, 4, 50)),
    "no channels": (Transformed((9,), [100], CAUSAL), (2, 50)),
    "images": (Transformed((4, 3, 5), [24, 26], ((0, 12), (0, 13))), (2, 4, 12, 13)),
    "images, kept inside": (Transformed((4, 3, 5), [24, 26], ((1, 13), (2, 15)), norm="ortho"), (2, 4, 12, 13)),
    "volumes": (Transformed((2, 3, 2, 3), [12, 12, 14], ((0, 6), (0, 5), (0, 6))), (2, 2, 6, 5, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("rule", [SHORTER, TAPS], ids=["shorter", "taps"])
def test_every_program(name: str, rule: ShrinkTransform):
    model, shape = MADE[name]
    result = assert_rule(rule, model.eval(), r(shape), batches=(1, 5))
    assert_exact(result, model, r(shape))
    found = operators(result)
    if rule is TAPS:
        assert len(result.record.commits) == 1
        assert not [each for each in found if each.startswith("fft")]
        assert [each for each in found if each.startswith("conv")]
    elif name not in UNSHRUNK:
        points = [line.period for line in _lines(result)]
        assert all(now < before for now, before in zip(points, model.periods, strict=True)), points
    else:
        assert not result.record.commits


UNSHRUNK = ("one end", "the middle, wrapped outside", "a kernel that is cut")
"""Cases of :data:`MADE` whose circle is the smallest already."""


def _lines(result: Result) -> tuple[Line, ...]:
    from passes.shrink_transform.program import Program, begun, program_of

    [start] = [found for node in result.graph.nodes if (found := begun(result.graph, node)) is not None]
    program = program_of(result.graph, start)
    assert isinstance(program, Program)
    return program.lines


def test_without_a_batch():
    """The first dimension is one of kernels."""
    for rule in (SHORTER, TAPS):
        assert_rule(rule, Transformed((4, 9), [100], CAUSAL).eval(), r(4, 50), matches=1)
        assert_rule(rule, Transformed((9,), [100], CAUSAL).eval(), r(50), matches=1)


@pytest.mark.parametrize(
    ("taps", "direct", "taken"), [(23, 1.0, True), (24, 1.0, False), (24, 1.03, True), (23, 0.97, False)]
)
def test_where_the_sum_over_taps_takes_fewer_operations(taps: int, direct: float, taken: bool):
    """2 S for each of 200 outputs, or 5 log2 M and 3 for each of 224 points."""
    result = rewrite(Transformed((4, taps), [400], ((0, 200),)).eval(), ShrinkTransform(direct), r(2, 4, 200))
    by_transforms = 5 * 224 * math.log2(224) + 6 * 113
    assert (400 * taps < direct * by_transforms) == taken
    assert ("conv1d" in operators(result)) == taken


def test_an_input_that_is_repeated_for_some_kernels():
    """Where the kernel has some channels of the input and not all, the input is not repeated for the sum over taps."""
    model = Transformed((3, 4, 9), [100], CAUSAL)
    result = rewrite(model.eval(), TAPS, r(2, 1, 4, 50))
    assert "conv1d" not in operators(result)
    assert len(result.record.commits) == 1  # over fewer points
    assert_rule(TAPS, model.eval(), r(2, 1, 4, 50), matches=1, batches=(1, 5))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("rule", [SHORTER, TAPS], ids=["shorter", "taps"])
def test_each_tap_is_a_shifted_copy(dims: int, rule: ShrinkTransform):
    """A kernel that is not turned around, or is one step off, would shift another way."""
    kernel, sizes, periods = (4, 3)[:dims], (7, 6)[:dims], (24, 20)[:dims]
    model = Transformed((1, *kernel), periods, tuple((0, size) for size in sizes), dtype=torch.float64)
    x = r(1, 1, *sizes, dtype=torch.float64)
    graph = rewrite(model.eval(), rule, x).graph
    assert len(list(graph.calls()))
    for tap in torch.cartesian_prod(*map(torch.arange, kernel)).reshape(-1, dims).tolist():
        weight = torch.zeros(1, *kernel, dtype=torch.float64)
        weight[(0, *tap)] = 1
        wanted = x.roll(tap, list(range(2, dims + 2)))
        for dim, shift in enumerate(tap, start=2):
            wanted.narrow(dim, 0, shift).zero_()
        found = graph.to_module({"kernel": weight})(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@given(
    size=st.integers(1, 9), kernel=st.integers(1, 9), period=st.integers(1, 20), start=st.integers(0, 19),
    length=st.integers(1, 20),
)  # fmt: skip
def test_lines_in_integers(size: int, kernel: int, period: int, start: int, length: int):
    """What is said of one dimension, against sums of integers around circles."""
    if start + length > period:
        return
    line = Line(size, kernel, period, start, start + length)
    x, k = [7 * i + 1 for i in range(size)], [10**i for i in range(kernel)]

    def around(x: list[int], k: list[int], points: int) -> list[int]:
        found = [0] * points
        for i, tap in enumerate(k[:points]):
            for j, element in enumerate(x[:points]):
                found[(i + j) % points] += tap * element
        return found

    kept = around(x, k, period)[line.start : line.end]
    linear = around(x[:period], k[:period], size + kernel + period)[line.start : line.end]
    assert line.wraps == (kept != linear)
    if line.wraps or line.first >= line.last:
        return
    part, taps = x[line.first : line.last], k[: line.taps]
    correlation = line.circle
    assert correlation.taps.low >= 0
    assert correlation.taps.high >= 0
    assert correlation.outputs == line.outputs
    for points in (correlation.least, correlation.period):
        assert around(part, taps, points)[line.start - line.first : line.end - line.first] == kept
    padded = [0] * correlation.taps.low + part + [0] * correlation.taps.high
    turned = taps[::-1]
    assert [sum(w * padded[u + i] for i, w in enumerate(turned)) for u in range(line.outputs)] == kept
    if correlation.least > max(len(part), len(taps)):
        assert around(part, taps, correlation.least - 1)[line.start - line.first : line.end - line.first] != kept


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "kept"), [(9, (0, 50)), (9, (4, 50)), (9, (8, 50)), (9, (0, 58)), (50, (20, 60))], ids=str
)
def test_one_point_fewer_is_rejected(kernel: int, kept: tuple[int, int], short: int, monkeypatch: pytest.MonkeyPatch):
    """The smallest circle is exact, and verification sees that a smaller one is not."""
    least = Circle.least.fget
    assert least is not None
    monkeypatch.setattr(circle, "fast_length", lambda points: points)
    monkeypatch.setattr(Circle, "least", property(lambda self: least(self) - short))
    model = Transformed((2, kernel), [200], (kept,))
    graph = capture(model.eval(), (r(2, 2, 50),)).graph
    record = Driver(graph, MatchVerifier()).run([SHORTER])[0]
    assert len(record.commits) == 1 - short
    assert len(record.rejections) == short


def test_outputs_that_others_read_are_all_kept():
    """A slice is not the only reader, so everything is kept, and the circle is as small as it can be."""
    model = Shown((4, 9), [100], CAUSAL, which="outputs").eval()
    assert not rewrite(model, SHORTER, r(2, 4, 50)).record.commits
    result = assert_rule(TAPS, model, r(2, 4, 50), matches=1, batches=(1, 5))
    [conv] = [node for node in result.graph.calls() if node.target._opname == "conv1d"]
    assert conv.meta["val"].shape[-1] == 100


def test_a_free_length_is_not_taken():
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(r(4, 9))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(0, 1)[None, None].expand(1, 4, -1)  # the batch is a part of the length
            n = 2 * x.shape[-1]
            return fft.irfft(fft.rfft(x, n=n) * fft.rfft(self.kernel, n=n), n=n)[..., :9]

    record = rewrite(Free().eval(), TAPS, r(3, 50)).record
    assert not record.commits
    assert ["the number of points is not fixed" in refused.reason for refused in record.refused] == [True]


def test_a_result_of_its_own_is_not_spoken_of():
    result = rewrite(Transformed((4, 9), [100], CAUSAL).eval(), SHORTER, r(2, 4, 50))
    assert len(result.record.commits) == 1
    assert not result.record.refused


def test_blocks_behind_it():
    """A short kernel over a long sequence: the sum over taps, and then blocks where transforms of these take less."""
    model = Transformed((1, 100), [80_000], ((0, 40_000),)).eval()
    x = r(1, 1, 40_000)
    fast = optimize(model, x, pipeline=[TAPS, FftConvolution(), FoldConstants()], lower="eager", cache=False)
    assert [commit.rule for record in fast.report.records for commit in record.commits][:2] == [
        "shrink-transform", "fft-convolution",
    ]  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_past_hears_nothing_of_the_future_from_taps():
    model = Transformed((2, 9), [100], CAUSAL).eval()
    x = r(2, 2, 50)
    later = x.clone()
    later[..., 30:] = 1e6
    taps, points = (rewrite(model, rule, x).graph.to_module() for rule in (TAPS, SHORTER))
    assert torch.equal(taps(later)[..., :30], taps(x)[..., :30])
    leak = (points(later) - points(x))[..., :30].abs().max()
    assert 0 < leak <= 32 * torch.finfo(torch.float32).eps * 1e6


def test_a_batch_of_none_runs_as_taps():
    model, x = Transformed((4, 9), [100], CAUSAL).eval(), r(2, 4, 50)
    fast = optimize(model, x, pipeline="shrink-transform, fold-constants", lower="eager", cache=False)
    captured = len(fast._engine._snapshot.weights)
    assert fast(x[:0]).shape == (0, 4, 50)
    assert len(fast._engine._snapshot.weights) == captured


def test_kernels_are_weights_and_follow_the_model():
    for rule in ("shrink-transform", "shrink-transform{direct=0.0}"):
        model, x = Transformed((4, 9), [100], CAUSAL).eval(), r(2, 4, 50)
        fast = optimize(model, x, pipeline=f"{rule}, fold-constants", lower="eager", cache=False)
        with torch.no_grad():
            model.kernel.normal_()
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_it_trains():
    model, x = Transformed((4, 9), [100], CAUSAL, dtype=torch.float64), r(2, 4, 50, dtype=torch.float64)
    gradients = []
    for step in (model, transform(model, x, "shrink-transform"), transform(model, x, "shrink-transform{direct=0.0}")):
        model.zero_grad()
        step(x).square().sum().backward()
        gradients.append(model.kernel.grad.clone())
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0])


def test_after_folding_nothing_is_known_of_the_kernel():
    model, x = Transformed((4, 9), [100], CAUSAL).eval(), r(2, 4, 50)
    found = offers(model, x, "shrink-transform")
    assert not found
    assert "the spectrum is a weight" in found.refusals()
    assert "name the rule before" in " ".join(found.refusals().split())
    assert len(offers(model, x, "shrink-transform", pipeline="simplify")) == 1


def test_hyena():
    """Its kernels are as long as the sequence: short here, so that the sum over taps takes fewer operations."""
    model, inputs = load("hyena", "small")
    result = assert_rule(ShrinkTransform(), model, inputs, matches=4, batches=(3,))
    assert not [name for name in operators(result) if name.startswith("fft")]
    again = assert_rule(SHORTER, model, inputs, matches=0)
    assert {"fewer than 48 points" in refused.reason for refused in again.record.refused} == {True}
    fast = optimize(model, inputs, pipeline="shrink-transform, default", lower="eager", cache=False)
    assert fast.report.model_verdict.accepted


def test_sgconv():
    """Its second kernel looks ahead, from the end of the circle: that wraps around by intent."""
    model, inputs = load("sgconv", "small")
    assert_rule(ShrinkTransform(), model, inputs, refuses="96 points wrap around into outputs that are kept")
