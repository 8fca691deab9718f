"""Kernels of single depthwise convolutions of any sizes, strides, dilations and paddings, against float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.emitting import Schedule
from codegen.triton.depthwise.streaming import Streaming
from codegen.triton.depthwise.toeplitz import Toeplitz
from codegen.triton.region import Region
from tests.codegen.triton.kernels import (
    SCHEDULES,
    Net,
    check,
    depthwise,
    doubled,
    effort,
    facts,
    last,
    module_of,
    needs_interpreter,
    regions_of,
    run,
    words,
)
from tests.drawn import COSTLY

pytestmark = needs_interpreter

KINDS = ("streaming", "streaming last", "banded", "toeplitz", "toeplitz below", "toeplitz channels")
DEAR = 8000
"""Operations that take the interpreter more than half a second."""

ACTIVATIONS = {"": lambda y: y, "relu": F.relu, "gelu": F.gelu, "hardswish": F.hardswish}
"""None of them moves two numbers farther apart than by half of their distance."""


@dataclass(frozen=True)
class Geometry:
    """A depthwise convolution and what it reads.

    Attributes:
        low, high: zeros in front and behind, put there by an operator of their own where they differ.
        layout: of the input, which may be a part of a wider tensor's channels or columns.
        before, after: activations.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    size: tuple[int, ...]
    channels: int
    batch: int
    bias: bool
    dtype: torch.dtype
    layout: str
    before: str
    after: str

    @property
    def padded(self) -> bool:
        """Whether zeros are put around by an operator of their own."""
        return self.low != self.high

    def input(self) -> Tensor:
        """Of the layout."""
        wide = {"channels": 3, "columns": 0}.get(self.layout.split()[0], 0)
        x = torch.randn(self.batch, self.channels + wide, *self.size, dtype=self.dtype)
        if "columns" in self.layout:
            x = torch.randn(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=self.dtype)
        x = last(x) if "last" in self.layout else x
        x = x[..., 1::2] if "columns" in self.layout else x
        return x[:, wide - 1 : wide - 1 + self.channels] if wide else x


class Layer(nn.Module):
    """The convolution with an activation in front, and one behind."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.geometry = geometry
        kind = nn.Conv1d if len(geometry.kernel) == 1 else nn.Conv2d
        padding = (0,) * len(geometry.kernel) if geometry.padded else geometry.low
        self.conv = kind(geometry.channels, geometry.channels, geometry.kernel, geometry.stride, padding,
                         geometry.dilation, geometry.channels, geometry.bias)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        geometry = self.geometry
        if geometry.before:
            x = ACTIVATIONS[geometry.before](x + 1)  # zeros around are no ones
        if geometry.padded:
            pairs = zip(reversed(geometry.low), reversed(geometry.high), strict=True)
            x = F.pad(x, tuple(itertools.chain(*pairs)))
        return ACTIVATIONS[geometry.after](self.conv(x))

    def scale(self, x: Tensor) -> Tensor:
        """The sum of the sizes of each result's terms, in float64."""
        wide = Layer(self.geometry).double()
        before = ACTIVATIONS[self.geometry.before](x.double() + 1) if self.geometry.before else x.double()
        for mine, own in zip(wide.parameters(), self.parameters(), strict=True):
            mine.data = own.detach().double().abs()
        wide.geometry = Geometry(**{**vars(self.geometry), "before": "", "after": ""})
        return wide(before.abs()).detach()


@st.composite
def geometries(draw, kind: str) -> Geometry:
    """Convolutions that a kind of schedules is for."""
    dims = 2 if "below" in kind else draw(st.sampled_from([1, 2, 2, 2]))
    shapes = {1: [(2,), (3,), (4,), (9,), (13,)], 2: [(3, 3), (5, 5), (1, 9), (2, 4), (4, 3), (7, 7), (3, 13), (13, 2)]}
    if "streaming" in kind:
        shapes = {1: [*shapes[1], (1,)], 2: [*shapes[2], (9, 1), (1, 1), (2, 2)]}
    elif "toeplitz" in kind:
        shapes = {1: shapes[1], 2: [*shapes[2], (13, 13), (8, 11)]}
    kernel = draw(st.sampled_from(shapes[dims]))
    stride = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in kernel]
    dilation = [draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel]
    if "below" in kind:
        stride[0] = dilation[0] = 1
    elif "toeplitz" not in kind and dims == 2 and stride[0] > 1:
        dilation[0] = 1
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding, low, high = draw(st.sampled_from(["none", "same", "causal", "any", "many"])), [], []
    for each in reach:
        amounts = {"none": (0, 0), "same": (each // 2, each // 2), "causal": (each, 0), "many": (each + 2, each + 2)}
        pair = draw(st.tuples(*[st.integers(0, each + 1)] * 2)) if padding == "any" else amounts[padding]
        low.append(pair[0])
        high.append(pair[1])
    spare = [draw(st.sampled_from([0, 1, 2, 5, 8, 14])) for _ in kernel]
    size = [max(1, d - a - b + 1) + n for d, a, b, n in zip(reach, low, high, spare, strict=True)]
    layout = "last" if "last" in kind or "channels" in kind else "first"
    return Geometry(
        kernel, tuple(stride), tuple(dilation), tuple(low), tuple(high), tuple(size),
        channels=draw(st.sampled_from([2, 3, 5, 17] if layout == "last" else [2, 3, 5])),
        batch=draw(st.integers(1, 3)), bias=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float16])),
        layout=draw(st.sampled_from([layout, f"{layout} channels", f"{layout} columns"])),
        before=draw(st.sampled_from(["", "", *ACTIVATIONS])), after=draw(st.sampled_from(["", *ACTIVATIONS])),
    )  # fmt: skip


def of_kind(kind: str, region: Region) -> list[Schedule]:
    """Schedules, of which some fit the sizes and some do not."""
    height, width = region.sizes["h"], region.sizes["w"]
    strips = sorted({1, 2, -(-height // 2), height})
    windows = [(columns, whole) for columns in (16, 32) for whole in (False, True) if not whole or width <= columns]
    match kind.split():
        case ["streaming", *ending]:
            sizes = itertools.product((2, 4, 16), (2, 4, 16), strips)
            return [Streaming(columns, others, rows, ending == ["last"]) for columns, others, rows in sizes]
        case ["banded"]:
            return [Banded(many, columns, rows, whole)
                    for many in (16, 32) for columns, whole in windows for rows in strips]  # fmt: skip
    below, channels = {"toeplitz": ((1,), (1,)), "toeplitz below": ((2, 3, 4), (1,))}.get(kind, ((1,), (2, 8)))
    return [Toeplitz(rows, columns, many, whole, together) for rows in (16, 32) for columns, whole in windows
            for many in channels for together in below]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=min(COSTLY.max_examples, 60))
@given(data=st.data())
def test_kernels_agree_with_float64(kind: str, data: st.DataObject) -> None:
    geometry = data.draw(geometries(kind))
    model, x = Layer(geometry).to(geometry.dtype).eval(), geometry.input()
    module = module_of(model, x)
    region = data.draw(st.sampled_from(regions_of(module)))
    costs = {schedule: effort(region, [schedule]) for schedule in of_kind(kind, region)}
    cheap = [schedule for schedule, cost in costs.items() if cost <= max(DEAR, min(costs.values()))]
    _, (y,) = run(module, region, [data.draw(st.sampled_from(cheap))], x)
    with torch.no_grad():
        own = model(x)
    assert facts(y) == facts(own)
    (exact,) = doubled(model, x)
    # sums are float32; of 16-bit numbers the result is rounded, and what comes from the activation in front
    single, eps = torch.finfo(torch.float32).eps, torch.finfo(geometry.dtype).eps
    rounded = eps if geometry.before else 4 * single
    allowed = 1.5 * (rounded + math.prod(geometry.kernel) ** 0.5 * single) * model.scale(x) + eps * exact.abs() + 1e-7
    assert ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize(("kernel", "stride", "dilation", "low", "high", "dtype"), [
    ((3, 4), (1, 1), (1, 1), (1, 2), (1, 1), torch.float16), ((4,), (1,), (2,), (6,), (0,), torch.float32),
    ((4, 3), (2, 1), (1, 2), (0, 1), (3, 3), torch.float32),
])  # fmt: skip
@pytest.mark.parametrize("kind", SCHEDULES)
def test_ones_at_borders_give_the_taps(kind, kernel, stride, dilation, low, high, dtype):
    """Nothing else, and exactly."""
    if "below" in kind:  # rows that are made at once are next to one another
        stride = (1, *stride[1:])
    size = (6, 9)[-len(kernel) :]
    ones = [*itertools.product(*((0, each - 1) for each in size)), tuple(each // 2 for each in size)]
    layout = "last" if "last" in kind or "channels" in kind else "first"
    geometry = Geometry(kernel, stride, dilation, low, high, size, 2, len(ones), False, dtype, layout, "", "")
    model, x = Layer(geometry).to(dtype).eval(), torch.zeros_like(geometry.input())
    for n, place in enumerate(ones):
        x[(n, slice(None), *place)] = 1
    module = module_of(model, x)
    _, (y,) = run(module, regions_of(module)[-1], [SCHEDULES[kind]], x)
    expected, weight = torch.zeros_like(y), model.conv.weight.detach()
    for (n, place), taps in itertools.product(enumerate(ones), itertools.product(*map(range, kernel))):
        found = [p + a - k * d for p, a, k, d in zip(place, low, taps, dilation, strict=True)]
        at = [f // s for f, s in zip(found, stride, strict=True)]
        exists = all(f % s == 0 for f, s in zip(found, stride, strict=True))
        if exists and all(0 <= a < length for a, length in zip(at, y.shape[2:], strict=True)):
            expected[(n, slice(None), *at)] = weight[(slice(None), 0, *taps)]
    assert torch.equal(y, expected)


AROUND = {
    "zeros": (lambda x: F.pad(x, (2, 1, 0, 3)), True),
    "zeros along columns": (lambda x: F.pad(x, (2, 1)), True),
    "zeros beside samples": (lambda x: F.pad(x, (1, 1, 1, 1, 0, 0, 0, 0)), True),
    "ones": (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), False),
    "a mirror": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), False),
    "the other side": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), False),
    "less than there was": (lambda x: F.pad(x, (-1, 1, 1, 1)), False),
    "channels": (lambda x: F.pad(x[:, 1:], (1, 1, 1, 1, 1, 0)), False),
}


@pytest.mark.parametrize("kind", ["streaming", "toeplitz"])
@pytest.mark.parametrize("name", AROUND)
def test_zeros_in_front_are_the_kernels_own(name, kind):
    """Whatever else is put around images is computed by others."""
    around, own = AROUND[name]
    model = Net(lambda n, x: n.a(around(x)), a=depthwise(3, (3, 4), padding=(1, 0)))
    x = torch.randn(2, 3, 5, 6)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert (words(region.main.nodes) != "conv2d") == own
    assert (region.main.input.op == "placeholder") == own
    check(model, [x], run(module, region, [SCHEDULES[kind]], x)[1])


BEHIND = {
    "the first": (lambda y: y[..., :9], True), "all but some": (lambda y: y[..., :-2], True),
    "one": (lambda y: y[..., :1], True),
    "the last": (lambda y: y[..., 2:], False), "every second": (lambda y: y[..., ::2], False),
    "some channels": (lambda y: y.narrow(1, 0, 2), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["streaming", "toeplitz"])
@pytest.mark.parametrize("name", BEHIND)
def test_results_that_are_left_out_are_not_computed(name, kind):
    """Those behind the first ones, as causal convolutions have too many of them."""
    behind, own = BEHIND[name]
    model = Net(lambda n, x: F.silu(behind(n.a(x))), a=depthwise(3, (4,), padding=3))
    x = torch.randn(2, 3, 9)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert words(region.nodes) == ("conv1d slice silu" if own else "conv1d")
    kernel, found = run(module, region, [SCHEDULES[kind]], x)
    assert kernel.results[0].shape == (found[0].shape if own else (2, 3, 12))
    check(model, [x], found)
