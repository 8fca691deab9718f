"""Whether the kernels compute what they should on this machine, for compilers differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.native.kernels import (
    Kernel,
    filled,
    geometry,
    packed_dense,
    packed_depthwise,
    packed_matrix,
    packed_spectrum,
)
from codegen.native.operators import ACTIVATIONS, operator, pack_fft
from rewrite.winograd import TAPS, evaluation

_ALLOWED = 1e-5
_CHANNELS = 37  # fill no register

Draw = Callable[..., Tensor]
Pair = tuple[Tensor, Tensor]


def sound() -> bool:
    """Whether each kind of kernel gives what torch gives, for channels that fill no register and borders all around."""
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    with torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        pairs = [*_convolutions(drawn), *_products(drawn), *_excitation(drawn), *_circles(drawn)]
        return all(new.shape == old.shape and bool((new - old).norm() <= _ALLOWED * old.norm()) for new, old in pairs)


def _convolutions(drawn: Draw) -> Iterator[Pair]:
    """Each way through the kernels over images."""

    def pair(
        kind: str, x: Tensor, weight: Tensor, stride: tuple[int, int], name: str, added: bool, groups: int
    ) -> Pair:
        low = weight.shape[2] // 2, weight.shape[3] // 2
        bias = drawn(len(weight))
        plain = F.conv2d(x, weight, bias, stride, low, 1, groups)
        residual = drawn(*plain.shape) if added else None
        whole = plain if residual is None else plain + residual
        numbers = geometry(plain.shape, weight.shape[2:], stride, low, (1, 1), name, groups)
        kernel = Kernel(kind, _packed(kind, weight, groups), bias, numbers)
        found = kernel(_last(x), None if residual is None else _last(residual))
        return found, {"": lambda y: y, "relu": F.relu, "relu6": F.relu6, "silu": F.silu}[name](whole)

    x, each = drawn(2, _CHANNELS, 11, 9), drawn(_CHANNELS, 1, 5, 3)
    yield pair("convolution", x, drawn(83, _CHANNELS, 3, 3), (1, 1), "silu", False, 1)
    yield pair("convolution", x, drawn(83, _CHANNELS, 3, 3), (2, 1), "relu", True, 1)
    yield pair("convolution", drawn(1, 3, 7, 40), drawn(40, 3, 3, 3), (2, 2), "relu6", False, 1)
    yield pair("convolution", drawn(2, 36, 9, 8), drawn(42, 12, 3, 3), (1, 1), "", True, 3)
    yield _parts(drawn)
    yield pair("winograd", x, drawn(83, _CHANNELS, 3, 3), (1, 1), "silu", True, 1)
    yield pair("depthwise", x, each, (2, 1), "relu", False, _CHANNELS)
    yield pair("depthwise", drawn(1, _CHANNELS, 4, 40), drawn(_CHANNELS, 1, 3, 3), (1, 1), "silu", True, _CHANNELS)
    yield pair("depthwise", drawn(1, _CHANNELS, 4, 40), drawn(_CHANNELS, 1, 9, 9), (1, 1), "", False, _CHANNELS)


def _parts(drawn: Draw) -> Pair:
    """An image and a sum that are parts of wider ones."""
    wide, added, weight = _last(drawn(2, _CHANNELS + 5, 7, 9)), _last(drawn(2, 50, 7, 9)), drawn(41, _CHANNELS, 3, 3)
    x, residual = wide[:, 3 : _CHANNELS + 3], added[:, 9:]
    numbers = geometry((2, 41, 7, 9), (3, 3), (1, 1), (1, 1), (1, 1), "silu")
    found = Kernel("convolution", packed_dense(weight), None, numbers)(x, residual)
    return found, F.silu(F.conv2d(x, weight, padding=1) + residual)


def _packed(kind: str, weight: Tensor, groups: int) -> Tensor:
    if kind == "winograd":
        v = evaluation(TAPS)
        return packed_spectrum(torch.einsum("pi,ocij,qj->pqco", v, weight.double(), v).float())
    return packed_depthwise(weight) if kind == "depthwise" else packed_dense(weight, groups)


def _products(drawn: Draw) -> Iterator[Pair]:
    one, x, matrix, bias = (1, 1), drawn(2, 9, _CHANNELS), drawn(_CHANNELS, 83), drawn(83)
    residual, numbers = drawn(2, 9, 83), geometry((1, 83, 1, 1), one, one, (0, 0), one, "")
    yield Kernel("linear", packed_matrix(matrix), bias, numbers)(x, residual), x @ matrix + bias + residual


def _excitation(drawn: Draw) -> Iterator[Pair]:
    x, reduce, bias, expand = drawn(2, _CHANNELS, 11, 9), drawn(9, _CHANNELS), drawn(9), drawn(_CHANNELS, 9)
    gate = torch.sigmoid(F.linear(F.relu(F.linear(x.mean((2, 3)), reduce, bias)), expand))
    numbers = (9, ACTIVATIONS.index("relu"), ACTIVATIONS.index("sigmoid"))
    found = operator("excitation")(_last(x), filled(reduce.t()), bias, filled(expand.t()), None, numbers)
    yield found, x * gate[..., None, None]


def _circles(drawn: Draw) -> Iterator[Pair]:
    """With every prime factor, in both layouts."""
    for x, points in ((drawn(2, _CHANNELS, 1, 400), (1, 840)), (_last(drawn(2, _CHANNELS, 11, 9)), (16, 18))):
        kernel = drawn(_CHANNELS, *points)
        whole = torch.fft.irfft2(torch.fft.rfft2(x, points) * torch.fft.rfft2(kernel), points)
        yield operator("fft_convolution")(x, pack_fft(kernel), [*points, *points, 1, 1, 0]), whole


def _last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)
