"""Our own convolutions against float64, over drawn sizes, kernels and what follows them."""

from __future__ import annotations

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from codegen.native import available, operators, supported
from codegen.native.kernels import (
    Kernel,
    filled,
    geometry,
    packed_dense,
    packed_depthwise,
    packed_matrix,
    packed_spectrum,
)
from codegen.native.operators import ACTIVATIONS
from rewrite.winograd import evaluation

pytestmark = pytest.mark.skipif(not supported(), reason="needs a C++ compiler on Linux and x86")

AFTER = {
    "": lambda y: y, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu,
}  # fmt: skip
WINOGRAD = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1)}


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert available()


def kernel_of(
    kind: str, weight: Tensor, bias: Tensor | None, result: Tensor, stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...], activation: str, groups: int = 1,
) -> Kernel:  # fmt: skip
    if kind == "winograd":
        v = evaluation(3)
        weights = packed_spectrum(torch.einsum("pi,ocij,qj->pqco", v, weight.double(), v).float())
    else:
        weights = packed_depthwise(weight) if kind == "depthwise" else packed_dense(weight, groups)
    taps = tuple(weight.shape[2:])
    numbers = geometry(result.shape, taps, stride, padding, dilation, activation, groups)
    return Kernel(kind, weights, bias, numbers)


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@st.composite
def layers(draw, kind):
    """A weight, an input, and the settings of a convolution that gives at least one output."""
    channels = draw(st.sampled_from([1, 3, 7, 16, 17, 33, 72]))
    outputs = channels if kind == "depthwise" else draw(st.sampled_from([1, 5, 16, 40, 64, 80]))
    pair = st.tuples(*[st.integers(1, 3)] * 2)
    taps = draw(st.tuples(*[st.sampled_from([1, 2, 3, 5, 7, 9])] * 2))
    stride, dilation = draw(pair), draw(pair)
    if kind == "winograd":
        taps, stride, dilation = (3, 3), (1, 1), (1, 1)
    padding = draw(st.tuples(*(st.integers(0, d * (k - 1) + 2) for k, d in zip(taps, dilation, strict=True))))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(taps, dilation, padding, strict=True)]
    size = [n + draw(st.integers(0, 19)) for n in least]
    batch = draw(st.integers(1, 3))
    groups = channels if kind == "depthwise" else 1
    if kind == "convolution":
        groups = draw(st.sampled_from([n for n in (1, 2, 3, 5, 8) if channels % n == outputs % n == 0]))
    weight = torch.randn(outputs, channels // groups, *taps) * draw(st.sampled_from([0.01, 1, 30]))
    return weight, torch.randn(batch, channels, *size), stride, padding, dilation, groups


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "winograd"])
@given(data=st.data())
def test_kernels_agree_with_float64(kind, data):
    weight, x, stride, padding, dilation, groups = data.draw(layers(kind))
    biased, added = data.draw(st.booleans()), data.draw(st.booleans())
    name = data.draw(st.sampled_from(ACTIVATIONS))
    bias = torch.randn(weight.shape[0]) if biased else None
    doubled = None if bias is None else bias.double()
    plain = F.conv2d(x.double(), weight.double(), doubled, stride, padding, dilation, groups)
    size = F.conv2d(x.double().abs(), weight.double().abs(), None, stride, padding, dilation, groups)
    residual = last(torch.randn(plain.shape)) if added else None
    whole = plain if residual is None else plain + residual
    kernel = kernel_of(kind, weight, bias, plain, stride, padding, dilation, name, groups)
    found = kernel(last(x), residual)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Winograd's errors belong to tiles, so they are measured by the largest sum of sizes
    scale = size.amax() * 4 if kind == "winograd" else size
    allowed = 4e-6 * (scale + whole.abs() + 1)
    assert ((found.double() - AFTER[name](whole)).abs() <= allowed).all()


@pytest.mark.parametrize(("stride", "padding", "size"), [(2, 1, 3), (2, 4, 9), (3, 2, 2)])
def test_one_tap_that_keeps_the_size(stride, padding, size):
    weight, x = torch.randn(6, 4, 1, 1), torch.randn(2, 4, size, size)
    plain = F.conv2d(x.double(), weight.double(), None, stride, padding)
    assert plain.shape[2:] == x.shape[2:]
    kernel = kernel_of("convolution", weight, None, plain, (stride,) * 2, (padding,) * 2, (1, 1), "")
    torch.testing.assert_close(kernel(last(x)).double(), plain, rtol=1e-5, atol=1e-5)


@given(data=st.data())
def test_products_agree_with_float64(data):
    rows, inputs, outputs = (data.draw(st.integers(1, 70)) for _ in range(3))
    name, added = data.draw(st.sampled_from(ACTIVATIONS)), data.draw(st.booleans())
    weight, bias = torch.randn(inputs, outputs), torch.randn(outputs)
    shape = data.draw(st.sampled_from([(rows,), (2, rows), (1, rows, 3), ()]))
    x = torch.randn(*shape, inputs)
    residual = torch.randn(*shape, outputs) if added else None
    numbers = geometry((1, outputs, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), name)
    whole = x.double() @ weight.double() + bias + (0 if residual is None else residual.double())
    found = Kernel("linear", packed_matrix(weight), bias, numbers)(x, residual)
    assert found.shape == whole.shape
    allowed = 4e-6 * (x.double().abs() @ weight.double().abs() + whole.abs() + 1)
    assert ((found.double() - AFTER[name](whole)).abs() <= allowed).all()


@given(data=st.data())
def test_excitation_agrees_with_float64(data):
    batch, hidden = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 8, 16, 23, 150]))
    channels = data.draw(st.sampled_from([1, 7, 16, 40, 128, 200]))
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    x = last(torch.randn(batch, channels, height, width) * data.draw(st.sampled_from([0.1, 20])) + 1)
    first, second = torch.randn(hidden, channels) / channels**0.5, torch.randn(channels, hidden) / hidden**0.5
    biases = [torch.randn(count) if data.draw(st.booleans()) else None for count in (hidden, channels)]
    inner, outer = data.draw(st.sampled_from(ACTIVATIONS)), data.draw(st.sampled_from(["sigmoid", "hardsigmoid"]))
    numbers = [hidden, ACTIVATIONS.index(inner), ACTIVATIONS.index(outer)]
    call = operators.operator("excitation")
    found = call(x, filled(first.t()), biases[0], filled(second.t()), biases[1], numbers)
    in_double = [None if bias is None else bias.double() for bias in biases]
    middle = AFTER[inner](F.linear(x.double().mean((2, 3)), first.double(), in_double[0]))
    gate = AFTER[outer](F.linear(middle, second.double(), in_double[1]))
    whole = x.double() * gate[..., None, None]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert ((found.double() - whole).abs() <= 1e-5 * (1 + x.double().abs().amax()) * x.double().abs()).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["convolution", "depthwise"])  # Winograd's algorithm spreads them over a tile
def test_infinity_and_nan_are_where_torch_has_them(kind, name):
    groups = 16 if kind == "depthwise" else 1
    weight = torch.zeros(16, 16 // groups, 3, 3)
    weight[:, 0, 1, 1] = 1
    x = last(torch.randn(1, 16, 8, 8))
    x[0, 0, 4, 4], x[0, 0, 1, 1], x[0, 0, 6, 1] = float("nan"), -float("inf"), float("inf")
    plain = F.conv2d(x, weight, None, 1, 1, 1, groups)
    assert plain.isnan().any()
    found = kernel_of(kind, weight, None, plain, (1, 1), (1, 1), (1, 1), name, groups)(x)
    torch.testing.assert_close(found, AFTER[name](plain), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "hardswish"])
def test_activations_are_exact_to_some_roundings(name):
    """Over the whole range, relative to the result: small ones are not lost beside one."""
    x = torch.cat([torch.linspace(-85, 85, 40001), torch.tensor([-1e4, 1e4, 1e-30, -1e-30])]).reshape(1, 5, 1, -1)
    weight = torch.ones(5, 1, 1, 1)
    found = kernel_of("depthwise", weight, None, x, (1, 1), (0, 0), (1, 1), name, 5)(last(x)).double()
    wanted = AFTER[name](x.double())
    absolute = 3e-7 * x.double().abs() if name == "gelu" else 1e-30
    relative = 1e-6 + 1e-7 * x.double().abs()  # the argument's own rounding, where there is no fused product
    assert ((found - wanted).abs() <= relative * wanted.abs() + absolute).all()


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "winograd"])
def test_many_threads_share_the_work(kind):
    """Large enough for all threads, by rows and by columns; more threads than this machine may have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        for batch, channels, size in ((1, 48, 9), (3, 40, 61), (1, 96, 30)):
            groups = channels if kind == "depthwise" else 1
            weight, x = torch.randn(channels, channels // groups, 3, 3), torch.randn(batch, channels, size, size)
            plain = F.conv2d(x.double(), weight.double(), None, 1, 1, 1, groups)
            kernel = kernel_of(kind, weight, None, plain, (1, 1), (1, 1), (1, 1), "", groups)
            error = (kernel(last(x)).double() - plain).abs().amax()
            assert error < 1e-4 * plain.abs().amax()
    finally:
        torch.set_num_threads(threads)


def test_threads_of_the_caller_do_not_meet():
    weight, inputs = torch.randn(32, 32, 3, 3), [torch.randn(1, 32, 20, 20) for _ in range(4)]
    wanted = [F.conv2d(x.double(), weight.double(), None, 1, 1) for x in inputs]
    kernel = kernel_of("winograd", weight, None, wanted[0], (1, 1), (1, 1), (1, 1), "")
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if (kernel(last(inputs[i])).double() - wanted[i]).abs().amax() > 1e-3:
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_extremes_go_where_they_went(name):
    """Infinities, NaN, zeros of both signs and the ends of the exponential, by a convolution that computes nothing."""
    special = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-40, 88.0, 89.5, -87.0, -88.0, -104.0, 3e38, -3e38]
    x = torch.tensor([*special, 1e-6, -1e-6, *torch.linspace(-12, 12, 49).tolist()])[:, None, None, None]
    weight = torch.ones(1, 1, 1, 1)
    kernel = kernel_of("convolution", weight, None, x, (1, 1), (0, 0), (1, 1), name)
    expected = AFTER[name](x.double()).float()
    torch.testing.assert_close(kernel(x), expected, rtol=3e-6, atol=2e-7, equal_nan=True)


def test_results_that_live_share_no_memory():
    """Large results come from a pool: what is held is not given away, what is dropped is."""
    weight, x = torch.randn(16, 16, 1, 1), last(torch.randn(1, 16, 80, 80))
    kernel = kernel_of("convolution", weight, None, x, (1, 1), (0, 0), (1, 1), "")
    held = [kernel(x) for _ in range(3)]
    assert len({result.data_ptr() for result in held}) == 3
    copies = [result.clone() for result in held]
    for _ in range(3):
        kernel(last(torch.randn(1, 16, 80, 80)))
    assert all(torch.equal(result, copy) for result, copy in zip(held, copies, strict=True))
    dropped = held.pop().data_ptr()
    assert kernel(x).data_ptr() == dropped


def test_wrong_layouts_are_refused():
    weight, x = torch.randn(8, 8, 1, 1), torch.randn(1, 8, 6, 6)
    kernel = kernel_of("convolution", weight, None, x, (1, 1), (0, 0), (1, 1), "")
    with pytest.raises(ValueError, match="channels-last layout"):
        kernel(x)
    with pytest.raises(ValueError, match="the bias of a native kernel"):
        kernel_of("convolution", weight, torch.ones(1).expand(8), x, (1, 1), (0, 0), (1, 1), "")(last(x))
    with pytest.raises(ValueError, match="the kernel of a native kernel"):
        kernel_of("convolution", weight[:, :3], None, x, (1, 1), (0, 0), (1, 1), "")(last(x))
    with pytest.raises(ValueError, match="another shape"):
        kernel(last(x), last(torch.randn(1, 8, 5, 6)))
