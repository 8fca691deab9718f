"""A kernel of our own beside the one that compiled code would call: oneDNN's for convolutions, MKL's for products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codegen.native.sites import Site, constant
from rewrite import compat
from rewrite.ops import Convolution, Linear, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule

Call = Callable[[], Tensor]


def described(site: Site) -> str:
    """What is timed at a site, as text: equal where the time is."""
    layer, shapes = site.layer, f"{tuple(value(site.input).shape)} {tuple(value(site.node).shape)}"
    along = f"bias {site.bias is not None} sum {site.residual is not None} {site.activation or 'none'}"
    if not isinstance(layer, Convolution):
        return f"native linear {shapes} {along}"
    kind = "dense" if layer.groups == 1 else f"groups {layer.groups}"
    return f"native {kind} {shapes} {layer.kernel} {layer.stride} {layer.padding} {layer.dilation} {along}"


def contenders(module: GraphModule, site: Site) -> dict[str, Call]:
    """The calls of both kernels on drawn values, ``"library"`` and ``"native"``.

    What the library's kernel cannot do along is left out there, though compiled code takes time for it: then ours has
    to be faster with more to do.

    Raises:
        RuntimeError, ValueError, AttributeError: the library has no kernel for it.
    """
    kernel = site.kernel(module)
    if isinstance(site.layer, Linear):
        x, residual = _drawn(site, torch.contiguous_format)
        return {"library": _product(module, site.layer, x, site.bias), "native": lambda: kernel(x, residual)}
    assert isinstance(site.layer, Convolution)
    x, residual = _drawn(site, torch.channels_last)
    library = _convolution(module, site.layer, x, site, residual)
    return {"library": library, "native": lambda: kernel(x, residual)}


def _drawn(site: Site, layout: torch.memory_format) -> tuple[Tensor, Tensor | None]:
    """What a site reads, and what is added."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(shape: Sequence[int]) -> Tensor:
        made = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
        return (made * 0.1 + 0.05).contiguous(memory_format=layout)

    return draw(value(site.input).shape), None if site.residual is None else draw(value(site.node).shape)


def _convolution(module: GraphModule, conv: Convolution, x: Tensor, site: Site, residual: Tensor | None) -> Call:
    weight = constant(module, conv.weight)
    assert weight is not None
    if any(low != high for low, high in conv.padding):
        raise ValueError(f"oneDNN pads both sides alike, not by {conv.padding}")
    layer = ([low for low, _ in conv.padding], list(conv.stride), list(conv.dilation), conv.groups)
    packed = compat.pack_convolution(weight, *layer, list(x.shape))
    fused = site.activation if residual is None or site.activation == "relu" else ""
    return lambda: compat.packed_convolution(x, packed, site.bias, *layer, fused, residual)


def _product(module: GraphModule, layer: Linear, x: Tensor, bias: Tensor | None) -> Call:
    weight = constant(module, layer.weight)
    assert weight is not None
    matrix = weight.t().contiguous() if layer.stored_transposed else weight
    rows = x.reshape(-1, x.shape[-1])
    if not compat.has_mkl():
        return lambda: torch.nn.functional.linear(rows, matrix, bias)
    packed = compat.pack_linear(matrix, len(rows))
    return lambda: compat.packed_linear(rows, packed, matrix, bias, len(rows))
