"""The operators of the compiled library, by their schemas.

All take an image ``[N, C, H, W]`` and what is added before the activation, both float32 with channels last, which may
be some of more channels, and give one that is dense; ``native_linear`` takes and gives rows ``[*, C]``, contiguous.
``geometry`` is ``[channels, height, width]`` of the result, ``[height, width]``, ``[stride]``, ``[top, left]``,
``[dilation]``, groups of the kernel, the place of the activation in :data:`ACTIVATIONS`, and whether the result leaves
the program.
``native_excitation`` takes an image, two matrices ``[C, hidden]`` and ``[hidden, C]``, whose last dimensions are filled
up to a multiple of 16, each with its bias, and gives an image that convolutions read; its ``geometry`` is the hidden
channels and both activations. ``native_sequence`` runs the steps of :mod:`codegen.native.sequences` over
images, with so many floats of memory; its ``shapes`` are ``[N, C, H, W]`` of each result, and whether it leaves.
``native_fft_convolution`` takes ``[N, C, L]`` or ``[N, C, H, W]``, contiguous or with channels last, where they may be
some of more channels, and gives the like, densely; its ``geometry`` is ``[rows, columns]`` of the circle and of the
result, ``[stride]``, and whether that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

ACTIVATIONS = ("", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu")
"""In the order of the C++ enumeration; '' is none."""

IMAGES = ("convolution", "depthwise", "winograd")
"""Kernels over images; all of them take the same arguments."""
KINDS = (*IMAGES, "linear")

_LIBRARY = torch.library.Library("torch_rewrite", "FRAGMENT")
_LIBRARY.define("native_pack(Tensor matrices) -> Tensor")
_LIBRARY.define("native_pack_fft(Tensor kernel) -> Tensor")


def _fake(x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Sequence[int]) -> Tensor:
    channels, height, width = geometry[:3]
    return x.new_empty([x.shape[0], channels, height, width]).to(memory_format=torch.channels_last)


def _fake_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor | None, geometry: Sequence[int]
) -> Tensor:
    return x.new_empty([*x.shape[:-1], geometry[0]])


for _kind in KINDS:
    _LIBRARY.define(
        f"native_{_kind}(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, int[] geometry) -> Tensor",
        tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag),
    )
    _shape = _fake_linear if _kind == "linear" else _fake
    torch.library.register_fake(f"torch_rewrite::native_{_kind}", _shape, lib=_LIBRARY)


_LIBRARY.define(
    "native_excitation(Tensor x, Tensor reduce, Tensor? reduce_bias, Tensor expand, Tensor? expand_bias, "
    "int[] geometry) -> Tensor",
    tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag),
)


def _fake_excitation(
    x: Tensor, reduce: Tensor, reduce_bias: Tensor | None, expand: Tensor, expand_bias: Tensor | None,
    geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.channels_last)


torch.library.register_fake("torch_rewrite::native_excitation", _fake_excitation, lib=_LIBRARY)

_LIBRARY.define(
    "native_sequence(Tensor[] images, Tensor weights, Tensor steps, int memory, int[] shapes) -> Tensor[]",
    tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag),
)


def _fake_sequence(
    images: Sequence[Tensor], weights: Tensor, steps: Tensor, memory: int, shapes: Sequence[int]
) -> list[Tensor]:
    return [
        weights.new_empty(list(shapes[i : i + 4])).to(memory_format=torch.channels_last)
        for i in range(0, len(shapes), 5)
    ]


torch.library.register_fake("torch_rewrite::native_sequence", _fake_sequence, lib=_LIBRARY)

_LIBRARY.define(
    "native_fft_convolution(Tensor x, Tensor packed, int[] geometry) -> Tensor",
    tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag),
)


def _fake_fft_convolution(x: Tensor, packed: Tensor, geometry: Sequence[int]) -> Tensor:
    batch, channels = x.shape[:2]
    size = geometry[4 - (x.dim() - 2) : 4]
    if x.is_contiguous():
        return x.new_empty([batch, channels, *size])
    last = x.new_empty([batch, *size, channels])
    return last.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


torch.library.register_fake("torch_rewrite::native_fft_convolution", _fake_fft_convolution, lib=_LIBRARY)


def operator(kind: str) -> Callable[..., Tensor]:
    """The operator of a kind, or ``native_`` any other."""
    found: Callable[..., Tensor] = getattr(torch.ops.torch_rewrite, f"native_{kind}").default
    return found


def pack(matrices: Tensor) -> Tensor:
    """``[taps, depth, columns]`` in the order in which the kernels read it, flat."""
    packed: Tensor = torch.ops.torch_rewrite.native_pack.default(matrices.contiguous())
    return packed


def pack_fft(kernel: Tensor) -> Tensor:
    """``[C, rows, columns]`` on a circle, as a spectrum in the order in which the kernel reads it, flat."""
    packed: Tensor = torch.ops.torch_rewrite.native_pack_fft.default(kernel.contiguous())
    return packed
