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

    from codegen.native.kernels import Kernel

Call = Callable[[], Tensor]


def described(site: Site) -> str:
    """What is timed at a site, as text: equal where the time is."""
    layer, shapes = site.layer, f"{tuple(value(site.input).shape)} {tuple(value(site.node).shape)}"
    along = f"bias {site.bias is not None} sum {site.residual is not None} {site.activation or 'none'}"
    if not isinstance(layer, Convolution):
        return f"native linear {shapes} {along}"
    kind = "dense" if layer.groups == 1 else f"groups {layer.groups}"
    kind += f" of rows, channels last: {is_last(value(site.input))}" if site.is_row else ""
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
    if site.is_row:
        return _of_rows(module, site.layer, site, kernel)
    x, residual = _drawn(site, torch.channels_last)
    library = _convolution(module, site.layer, x, site, residual)
    return {"library": library, "native": lambda: kernel(x, residual)}


def is_last(x: Tensor) -> bool:
    """Whether a sequence has its channels last in memory."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _of_rows(module: GraphModule, conv: Convolution, site: Site, kernel: Kernel) -> dict[str, Call]:
    """Those of sequences, for which compiled code calls torch's operator; what has to be copied is part of ours."""
    weight, (x, residual) = constant(module, conv.weight), _drawn(site, torch.contiguous_format)
    assert weight is not None
    if any(low != high for low, high in conv.padding):
        raise ValueError(f"torch pads both sides alike, not by {conv.padding}")
    settings = conv.stride, [low for low, _ in conv.padding], conv.dilation, conv.groups
    last = is_last(value(site.input))
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x

    def native() -> Tensor:
        rows = [None if one is None else _row(one) for one in (x, residual)]
        assert rows[0] is not None
        found = kernel(rows[0], rows[1]).squeeze(2)
        return found if last else found.contiguous()

    return {"library": lambda: torch.conv1d(x, weight, site.bias, *settings), "native": native}


def _row(x: Tensor) -> Tensor:
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


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
