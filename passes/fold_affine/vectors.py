"""Coefficients of an affine map as a vector over a layer's channels: weight algebra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from rewrite.ops import value

if TYPE_CHECKING:
    from passes.fold_affine.channels import Channels
    from passes.fold_affine.maps import Vector
    from rewrite.fragment import Builder

aten = torch.ops.aten


def spread(g: Builder, vector: Vector, dims: tuple[int, ...], channels: Channels, neutral: float, like: Node) -> Vector:
    """The vector over all channels, ``[count]``, of coefficients that apply where ``channels`` are.

    Args:
        g: the builder.
        vector: the coefficients, with the sizes of ``dims``.
        dims: the dimensions of the value along which they vary, all of them channels and nothing else.
        channels: where the channels are in the value.
        neutral: what the others get.
        like: a weight that lends dtype and device.

    Returns:
        a vector, or a number or a constant of one element for all of them alike.
    """
    digits = channels.digits
    if not dims and channels.complete:
        return vector
    present = [part for dim in channels.dims for part in dim if part.stride]
    sizes = [part.size for part in digits]
    if isinstance(vector, Node):
        if len(digits) == 1 and dims and channels.complete:
            return vector
        varying = [part for dim in dims for part in channels.dims[dim]]
        own = [part.size if part in varying else 1 for part in present]
        vector = g(aten.reshape.default, vector, own) if list(value(vector).shape) != own else vector
        order = [*sorted(range(len(present)), key=lambda i: -present[i].stride)]
        if order != list(range(len(present))):
            vector = g(aten.permute.default, vector, order)
        own = [part.size if part in varying else 1 for part in digits]
        if len(digits) != len(present):
            vector = g(aten.reshape.default, vector, own)
        if own != sizes:
            vector = g(aten.expand.default, vector, sizes)
    else:
        vector = g(aten.new_full.default, like, sizes, vector)
    amounts = [(part.start, part.whole - part.start - part.size) for part in digits]
    if any(map(any, amounts)):
        flat = [amount for pair in reversed(amounts) for amount in pair]
        vector = g(aten.constant_pad_nd.default, vector, flat, neutral)
    return vector if len(digits) == 1 else g(aten.reshape.default, vector, [channels.count])


def gather(g: Builder, vector: Vector, channels: Channels, dim: int) -> Vector:
    """The coefficients along dimension ``dim`` of a value that holds ``channels``, all along that dimension.

    ``vector`` has one element for each of the channels in the beginning.
    """
    if not isinstance(vector, Node) or not channels.digits:
        return vector
    digits, parts = channels.digits, channels.dims[dim]
    wholes = [part.whole for part in digits]
    if list(value(vector).shape) != wholes:
        vector = g(aten.reshape.default, vector, wholes)
    for i, part in enumerate(digits):
        if part.size != part.whole:
            vector = g(aten.slice.Tensor, vector, i, part.start, part.start + part.size)
    here = [part for part in parts if part.stride]
    order = [digits.index(part) for part in here]
    order += [i for i in range(len(digits)) if i not in order]
    if order != list(range(len(digits))):
        vector = g(aten.permute.default, vector, order)
    shape: list[Any] = [part.size for part in parts]
    if len(here) != len(parts):
        vector = g(aten.reshape.default, vector, [part.size if part.stride else 1 for part in parts])
        vector = g(aten.expand.default, vector, shape)
    return vector if value(vector).dim() == 1 else g(aten.reshape.default, vector, [-1])
