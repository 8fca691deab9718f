"""Fourier transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, reads, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Transform(View):
    """A discrete Fourier transform along some dimensions; all spellings but those of Hermitian input.

    Attributes:
        dims: not negative; along the last one the spectrum of real numbers is stored by half.
        sizes: how many points the transform has along each of ``dims``: numbers, or symbolic sizes. A longer input is
            cut, and a shorter one has zeros behind.
        norm: what is divided: ``"backward"`` or ``"forward"`` by the number of points that way, ``"ortho"`` both ways
            by its square root.
        inverse: from a spectrum.
        real: of or to real numbers.
    """

    input: Node
    dims: tuple[int, ...]
    sizes: tuple[Any, ...]
    norm: str
    inverse: bool
    real: bool


@reads(aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default)
def _along_one(node: Node, a: dict[str, Any]) -> Transform:
    return _transform(node, a, None if a["n"] is None else [a["n"]], [a["dim"]])


@reads(aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default,
       aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default)  # fmt: skip
def _along_several(node: Node, a: dict[str, Any]) -> Transform:
    rank, dims = value(a["self"]).dim(), a["dim"]
    if dims is None:
        count = rank if a["s"] is None else len(a["s"])
        dims = range(rank - count, rank)
    return _transform(node, a, a["s"], dims)


def _transform(node: Node, a: dict[str, Any], given: Sequence[Any] | None, dims: Sequence[int]) -> Transform:
    name = node.target._opname.removeprefix("fft_")  # type: ignore[union-attr]
    inverse, real = name.startswith("i"), "rfft" in name
    x = value(a["self"])
    places = tuple(dim % x.dim() for dim in dims)
    sizes = [x.shape[dim] if given is None or given[i] == -1 else given[i] for i, dim in enumerate(places)]
    if inverse and real and (given is None or given[-1] == -1):
        sizes[-1] = 2 * (x.shape[places[-1]] - 1)
    return Transform(node, a["self"], places, tuple(sizes), a["norm"] or "backward", inverse, real)
