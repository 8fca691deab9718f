"""Weight algebra that writes a small kernel into a larger one: more taps, fewer groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from passes.reparameterize.kernels import place
from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from passes.reparameterize.kernels import Taps
    from rewrite.fragment import Builder

aten = torch.ops.aten


def embedded(g: Builder, kernel: Node, parts: Sequence[Taps], wholes: Sequence[Taps]) -> Node:
    """A kernel of the taps ``parts`` as one of the taps ``wholes``: ``[O, C, *counts]``, zero where it has no tap."""
    margins: list[int] = []
    for dim, (part, whole) in enumerate(zip(parts, wholes, strict=True), start=2):
        offset, step = place(part, whole)
        kernel = spread_taps(g, kernel, dim, step)
        length = step * (part.count - 1) + 1
        margins[:0] = (offset, whole.count - offset - length)  # torch counts padded dimensions from the last
    return g(aten.constant_pad_nd.default, kernel, margins) if any(margins) else kernel


def spread_taps(g: Builder, kernel: Node, dim: int, step: int) -> Node:
    """Zeros between the taps of one dimension, so that they are ``step`` apart."""
    shape = [int(n) for n in value(kernel).shape]
    if step == 1 or shape[dim] == 1:
        return kernel
    behind = [0, 0] * (len(shape) - dim - 1)
    columns = g(aten.constant_pad_nd.default, g(aten.unsqueeze.default, kernel, dim + 1), [*behind, 0, step - 1])
    rows = g(aten.reshape.default, columns, [*shape[:dim], shape[dim] * step, *shape[dim + 1 :]])
    return g(aten.slice.Tensor, rows, dim, 0, step * (shape[dim] - 1) + 1)


def regrouped(g: Builder, kernel: Node, groups: int, coarse: int) -> Node:
    """A kernel of ``groups`` groups as one of ``coarse`` groups, a divisor: block-diagonal, with zeros elsewhere."""
    blocks = groups // coarse
    if blocks == 1:
        return kernel
    out, channels, *taps = (int(n) for n in value(kernel).shape)
    n = len(taps)
    split = g(aten.reshape.default, kernel, [coarse, blocks, out // groups, channels, *taps])
    last = g(aten.permute.default, split, [0, 2, 3, *range(4, n + 4), 1])
    square = g(aten.diag_embed.default, last)  # [coarse, out / groups, channels, *taps, block of out, block of in]
    ordered = g(aten.permute.default, square, [0, n + 3, 1, n + 4, 2, *range(3, n + 3)])
    return g(aten.reshape.default, ordered, [out, channels * blocks, *taps])
