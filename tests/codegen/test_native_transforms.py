"""Our own transforms against float64, and where programs call them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from codegen import native
from codegen.inductor import Inductor
from codegen.native.operators import operator, pack_fft
from codegen.native.transforms import circular_convolutions
from rewrite import compat, optimize
from rewrite.lowering import record
from tests.codegen.test_native_binding import called, module_of, ours, theirs
from tests.select.scripted import Scripted

pytestmark = pytest.mark.skipif(not native.supported(), reason="needs a C++ compiler on Linux and x86")

SMOOTH = sorted({2**a * 3**b * 5**c * 7**d for a in range(8) for b in range(4) for c in range(3) for d in range(2)})
SMOOTH = [n for n in SMOOTH if n <= 256]


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    assert native.available()


def laid_out(x: Tensor, last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def circular(x: Tensor, kernel: Tensor, points: tuple[int, ...]) -> Tensor:
    """The whole circle, in float64."""
    dims = tuple(range(2, x.dim()))
    spectra = torch.fft.fftn(x.double(), points, dims) * torch.fft.fftn(kernel.double(), points, [d - 1 for d in dims])
    return torch.fft.ifftn(spectra, points, dims).real


@given(data=st.data())
def test_they_agree_with_float64(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 1, 2]))
    lengths = st.sampled_from([n for n in SMOOTH if dims == 1 or n <= 48])
    points = tuple(data.draw(lengths) for _ in range(dims))
    points = (*points[:-1], 2 * points[-1])
    size = [data.draw(st.integers(1, n)) for n in points]
    stride = [data.draw(st.integers(1, 3)) for _ in points]
    kept = [data.draw(st.integers(1, (n - 1) // s + 1)) for n, s in zip(points, stride, strict=True)]
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 16, 17, 40, 64]))
    loud = 10.0 ** torch.randint(-3, 4, (batch, channels, *[1] * dims))
    x = laid_out(torch.randn(batch, channels, *size) * loud, data.draw(st.booleans()))
    if data.draw(st.booleans()):
        x = laid_out(torch.randn(batch, channels + 5, *size), True)[:, 2 : channels + 2]
    kernel = torch.randn(channels, *points) * data.draw(st.sampled_from([0.01, 1, 30]))
    wanted = circular(x, kernel, points)
    for dim, (s, n) in enumerate(zip(stride, kept, strict=True), start=2):
        wanted = wanted[(slice(None),) * dim + (slice(0, (n - 1) * s + 1, s),)]
    one = [1] * (2 - dims)
    geometry = [*one, *points, *one, *kept, *one, *stride, data.draw(st.integers(0, 1))]
    found = operator("fft_convolution")(x, pack_fft(kernel.reshape(channels, *one, *points)), geometry)
    assert found.shape == wanted.shape
    assert found.is_contiguous() or found.movedim(1, -1).is_contiguous()
    # each channel of each image by itself: none hears of another one
    each = x.double().flatten(2).norm(dim=2) * kernel.double().flatten(1).norm(dim=1)
    assert ((found.double() - wanted).abs().flatten(2).amax(2) <= 1e-6 * each).all()


def test_nan_and_infinity_stay_in_their_row() -> None:
    x, kernel = torch.randn(3, 40, 50), torch.randn(40, 1, 64)
    x[0, 0, 3], x[1, 17, 4], kernel[30, 0, 2] = float("nan"), float("inf"), float("nan")
    found = operator("fft_convolution")(x, pack_fft(kernel), [1, 64, 1, 50, 1, 1, 0])
    spoiled = found.isnan().any(2)
    assert spoiled.nonzero().tolist() == [[0, 0], [0, 30], [1, 17], [1, 30], [2, 30]]


@pytest.mark.parametrize("points", [4096, 6144, 8192, 2 * 3 * 5 * 7 * 8])
def test_long_ones_round_as_torch_does(points: int) -> None:
    x, kernel = torch.randn(1, 40, points // 2), torch.randn(40, 1, points)
    wanted = circular(x, kernel[:, 0], (points,))
    found = operator("fft_convolution")(x, pack_fft(kernel), [1, points, 1, points, 1, 1, 0])
    theirs_ = torch.fft.irfft(torch.fft.rfft(x, points) * torch.fft.rfft(kernel[:, 0]), points)
    assert (found - wanted).norm() <= 2 * (theirs_ - wanted).norm()


def test_many_threads_share_the_work() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        x, kernel = torch.randn(3, 90, 500), torch.randn(90, 1, 1024)
        found = operator("fft_convolution")(x, pack_fft(kernel), [1, 1024, 1, 500, 1, 1, 1])
        torch.testing.assert_close(found.double(), circular(x, kernel[:, 0], (1024,))[..., :500], rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("x", "points", "geometry", "message"), [
    (torch.randn(1, 3, 9), 8, [1, 8, 1, 8, 1, 1, 0], "on the circle"),
    (torch.randn(1, 3, 8), 8, [1, 8, 1, 9, 1, 1, 0], "on the circle"),
    (torch.randn(1, 3, 8), 8, [1, 8, 1, 5, 1, 2, 0], "on the circle"),
    (torch.randn(1, 4, 8), 8, [1, 16, 1, 8, 1, 1, 0], "the spectrum"),
    (torch.randn(1, 3, 16)[..., ::2], 8, [1, 8, 1, 8, 1, 1, 0], "dense"),
    (torch.randn(1, 3, 8), 8, [1, 22, 1, 8, 1, 1, 0], "prime factor"),
    (torch.randn(1, 3, 8), 8, [1, 9, 1, 8, 1, 1, 0], "even"),
    (torch.randn(1, 3, 8, dtype=torch.float64), 8, [1, 8, 1, 8, 1, 1, 0], "float32"),
    (torch.randn(3, 8), 8, [1, 8, 1, 8, 1, 1, 0], "dimensions"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(x: Tensor, points: int, geometry: list[int], message: str) -> None:
    packed = pack_fft(torch.randn(3, 1, points))
    with pytest.raises(ValueError, match=message):
        operator("fft_convolution")(x, packed, geometry)


class Filter(nn.Module):
    """A convolution in the frequency domain as models write it, or something near it."""

    def __init__(self, departure: str = "", dims: int = 1):
        super().__init__()
        self.departure, self.dims = departure, dims
        points = {"prime": 22, "odd": 21}.get(departure, 24)
        self.points = (points,) * dims
        if departure == "rows":
            self.points = (8, 24)
        self.kernel = nn.Parameter(torch.randn(5, *self.points[-dims:]))
        if departure == "shared":
            self.kernel = nn.Parameter(torch.randn(1, *self.points[-dims:]))
        if departure == "per image":
            self.kernel = nn.Parameter(torch.randn(2, 5, *self.points[-dims:]))

    def forward(self, x: Tensor) -> Any:
        norm = "ortho" if self.departure in ("ortho", "norms") else "backward"
        dims = tuple(range(-self.dims, 0))
        length = x.shape[-1]
        if self.departure in ("padded", "filled"):
            x = F.pad(x, (3, 2) * self.dims, value=float(self.departure == "filled"))
        if self.departure == "part":
            x = x[:, :5]
        spectrum = torch.fft.rfftn(self.kernel, dim=dims)
        transformed = torch.fft.rfftn(x, self.points, dims, norm=norm)
        product = spectrum * transformed if self.departure == "reversed" else transformed * spectrum
        other = "backward" if self.departure == "norms" else norm
        y = torch.fft.irfftn(product, self.points, dims, norm=other)
        if self.departure == "strided":
            return y[..., :length:2]
        if self.departure == "tail":
            return y[..., 3:]
        if self.departure == "read again":
            return y, transformed
        return y[..., :length]


FILTERS = [
    (Filter(), True), (Filter("reversed"), True), (Filter("ortho"), True), (Filter("norms"), False),
    (Filter("prime"), False), (Filter("odd"), False), (Filter("strided"), True), (Filter("tail"), True),
    (Filter("read again"), False), (Filter("shared"), True), (Filter("per image"), False), (Filter(dims=2), True),
    (Filter("strided", dims=2), True), (Filter("rows", dims=2), True), (Filter("padded"), True),
    (Filter("padded", dims=2), True), (Filter("filled"), True), (Filter("part"), True), (Filter("part", dims=2), True),
]  # fmt: skip


@pytest.mark.parametrize(("model", "bound", "last"), [
    pytest.param(model, bound, last, marks=[] if not model.departure or number % 2 == last else [pytest.mark.slow])
    for last in (False, True) for number, (model, bound) in enumerate(FILTERS)
])  # fmt: skip
def test_where_they_are_called(model: Filter, bound: bool, last: bool) -> None:
    x = laid_out(torch.randn(2, 9 if model.departure == "part" else 5, *(8, 12)[-model.dims :]), last)
    program = optimize(model.eval(), x, pipeline="simplify, fold-constants", lower="eager", tune="off").graph_module
    module = module_of(program, x)
    record(module, (x,))
    assert len(circular_convolutions(module)) == bound
    with torch.no_grad():
        expected = compat.tree_flatten(model(x))[0]
    assert native.bind(module, (x,), Scripted(price=ours)) == bound
    assert called(module) == ["fft_convolution"] * bound
    for new, old in zip(module(x), expected, strict=True):
        assert new.stride() == old.stride()
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_the_slower_one_is_left() -> None:
    x = torch.randn(2, 5, 12)
    program = optimize(Filter().eval(), x, pipeline="simplify, fold-constants", lower="eager", tune="off").graph_module
    assert native.bind(module_of(program, x), (x,), Scripted(price=theirs)) == 0
    assert native.bind(module_of(program, x), (x,), None) == 0


def test_contests_time_the_same_computation() -> None:
    for dims in (1, 2):
        x = torch.randn(2, 5, *(8, 12)[-dims:])
        program = optimize(Filter(dims=dims).eval(), x, pipeline="simplify, fold-constants", lower="eager", tune="off")
        module = module_of(program.graph_module, x)
        record(module, (x,))
        (site,) = circular_convolutions(module)
        calls = site.contenders(module)
        found, whole = calls["native"](), calls["library"]()
        torch.testing.assert_close(found, whole[tuple(slice(n) for n in found.shape)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 6, 300), (1, 6, 30, 34)])
def test_long_kernels_of_whole_models(shape: tuple[int, ...]) -> None:
    """The rule's program with our transforms, as it is and compiled, against direct convolution."""
    dims = len(shape) - 2
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    model = nn.Sequential(kind(6, 6, 29, padding=14, groups=6), nn.SiLU(), kind(6, 6, 15, stride=2, groups=6)).eval()
    x = torch.randn(shape)
    pipeline = "simplify, fft-convolution{saving=0.0}, simplify, fold-constants"
    program = optimize(model, x, pipeline=pipeline, lower="eager", tune="off").graph_module
    module = module_of(program, x)
    native.bind(module, (x,), Scripted(price=ours))
    assert called(module).count("fft_convolution") == 2
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], model(x), rtol=1e-4, atol=1e-4)


def test_compiled_programs_call_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a part of more channels and over what another kernel gives."""
    lowering = Inductor(Scripted(price=ours))
    monkeypatch.setattr("codegen.default_lowering", lambda *settings: lowering)
    model = nn.Sequential(Filter("part"), nn.Conv1d(5, 8, 3), nn.ReLU(), nn.Conv1d(8, 5, 1), Filter("padded")).eval()
    x = laid_out(torch.randn(2, 9, 14), last=True)
    bound: list[int] = []
    bind = native.bind
    monkeypatch.setattr(native, "bind", lambda *args, **kwargs: bound.append(found := bind(*args, **kwargs)) or found)
    fast = optimize(model, x, pipeline="simplify, fold-constants")
    with torch.no_grad():
        for batch in (x, torch.randn(3, 9, 14)):
            torch.testing.assert_close(fast(batch), model(batch), rtol=1e-4, atol=1e-4)
        model[0].kernel.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert bound
    assert set(bound) == {4}


def test_under_autocast_transforms_alone_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute in float32 in any case, also what a layer gives in half precision."""
    lowering = Inductor(Scripted(price=ours))
    monkeypatch.setattr("codegen.default_lowering", lambda *settings: lowering)
    model = nn.Sequential(nn.Conv1d(9, 5, 3, padding=1), Filter(), nn.Conv1d(5, 8, 1), nn.ReLU()).eval()
    x = torch.randn(2, 9, 14)
    bound: list[int] = []
    bind = native.bind
    monkeypatch.setattr(native, "bind", lambda *args, **kwargs: bound.append(found := bind(*args, **kwargs)) or found)
    fast = optimize(model, x, pipeline="simplify, fold-constants")
    bound.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(x), model(x)
    assert bound == [1]
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
    assert fast.lowerings[-1].lowering == lowering.name
