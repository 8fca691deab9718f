"""Kernels with packed weights, which TorchInductor's frozen code calls on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def has_mkl() -> bool:
    """Whether torch has MKL's packed matrix products."""
    return bool(torch.backends.mkl.is_available()) and hasattr(torch.ops.mkl, "_mkl_linear")


def pack_convolution(
    weight: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int,
    sizes: Sequence[int],
) -> Tensor:  # fmt: skip
    """A kernel ``[O, C / groups, *kernel]`` in the order that oneDNN wants for inputs of these sizes."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, sizes)
    return packed


_FUSED: dict[str, tuple[str, list[float], str]] = {
    "": ("none", [], ""), "relu": ("relu", [], ""), "relu6": ("hardtanh", [0.0, 6.0], ""),
    "hardswish": ("hardswish", [], ""), "hardsigmoid": ("hardsigmoid", [], ""), "sigmoid": ("sigmoid", [], ""),
    "silu": ("swish", [], ""), "gelu": ("gelu", [], "none"),
}  # fmt: skip


def packed_convolution(
    x: Tensor, packed: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int], groups: int, activation: str = "", residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A convolution with a packed kernel, what is added to it, and an activation, as frozen code has them in one call.

    Args:
        x, packed, bias, padding, stride, dilation, groups: the convolution.
        activation: what frozen code calls along: ``"relu"``, ``"relu6"``, ``"hardswish"``, ``"hardsigmoid"``,
            ``"sigmoid"``, ``"silu"``, ``"gelu"``; after a sum no other than ``"relu"`` is.
        residual: of the result's shape.
    """
    call, layer = torch.ops.mkldnn._convolution_pointwise, (padding, stride, dilation, groups)
    result: Tensor
    if residual is None:
        result = call(x, packed, bias, *layer, *_FUSED[activation])
    else:
        name = activation or None
        result = call.binary(x, residual, packed, bias, *layer, "add", 1.0, name, [], "")
    return result


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """A matrix ``[O, C]`` in the order that MKL wants for so many rows of input."""
    packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return packed


def packed_linear(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """A linear layer over ``[rows, C]`` with a packed matrix."""
    result: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows)
    return result
