r"""One layer in the place of two in a row: where it reads, what it costs, and its weights as algebra on theirs.

.. math:: W[o, c, t] = \sum_h \sum_{s e j + d i = t} W_2[o, h, j] \, W_1[h, c, i]

with the stride :math:`s` and the dilation :math:`d` of the first layer and the dilation :math:`e` of the second one.
Kernels are written ``[O, C / groups, *taps]`` here, those of linear layers and of transposed convolutions too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import affine
from passes.reparameterize.embed import regrouped
from passes.reparameterize.kernels import Taps
from rewrite.ops import Convolution, Linear, arguments, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten
_CONVOLUTIONS = {
    1: (aten.conv1d.default, aten.conv1d.padding),
    2: (aten.conv2d.default, aten.conv2d.padding),
    3: (aten.conv3d.default, aten.conv3d.padding),
}


@dataclass(frozen=True)
class Reach:
    """Where a layer reads: nothing but one element in each channel, where ``taps`` is empty as for linear layers.

    Attributes:
        taps, stride: one for each spatial dimension.
    """

    taps: tuple[Taps, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def kernel(self) -> tuple[int, ...]:
        """The numbers of taps."""
        return tuple(part.count for part in self.taps)

    @property
    def size(self) -> int:
        """The number of taps in all."""
        return math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position reads the input at the same position alone, and nothing else happens."""
        return all(part == Taps() and step == 1 for part, step in zip(self.taps, self.stride, strict=True))

    @property
    def pads(self) -> bool:
        """Whether it reads zeros beside its input."""
        return any(part.low or part.high for part in self.taps)


def reach(layer: affine.Layer) -> Reach:
    """Where a layer reads; of a transposed convolution, where it would if it were none."""
    if isinstance(layer, Linear):
        return Reach()
    taps = tuple(
        Taps(count, dilation if count > 1 else 1, low, high)
        for count, dilation, (low, high) in zip(layer.kernel, layer.dilation, layer.padding, strict=True)
    )
    return Reach(taps, layer.stride)


def is_pointwise(layer: affine.Layer) -> bool:
    """Whether a layer is a linear map of the channels at each position."""
    transposed = isinstance(layer, Convolution) and layer.transposed
    return reach(layer).is_pointwise and not (transposed and any(layer.output_padding))  # type: ignore[union-attr]


def composed(first: Reach, second: Reach) -> Reach:
    """Where the second layer reads what the first one reads."""
    taps = []
    for a, s, b in zip(first.taps, first.stride, second.taps, strict=True):
        extent = a.extent + s * b.extent
        step = math.gcd(*(d for part, d in ((a, a.step), (b, s * b.step)) if part.count > 1)) or 1
        taps.append(Taps(extent // step + 1, step, s * b.low + a.low, s * b.high + a.high))
    return Reach(tuple(taps), tuple(s * t for s, t in zip(first.stride, second.stride, strict=True)))


def ends_in_zeros(first: Reach, second: Reach, sizes: Sequence[int | None]) -> bool:
    """Whether the first layer, without its bias, would give zeros wherever the second one pads with them.

    It does where all its taps lie beside its own input there: a kernel of one tap, or one with full padding.

    Args:
        first, second: the layers.
        sizes: of the first layer's input; None for one that is not known.
    """
    for a, s, b, size in zip(first.taps, first.stride, second.taps, sizes, strict=True):
        if b.low and a.low + s <= a.extent:
            return False
        # at the end it depends on where the last output lies
        last = a.high - a.extent if size is None else s * a.outputs(size, s) - a.low - size
        if b.high and last < 0:
            return False
    return True


def kernel(g: Builder, layer: affine.Layer, groups: int, dims: int) -> Node:
    """A layer's weight as a kernel of so many groups, a divisor of its own number, and so many spatial dimensions.

    Only that of a single tap can have another number of dimensions than the layer.
    """
    weight = layer.weight
    if isinstance(layer, Linear):
        weight = g(aten.t.default, weight) if layer.stored_transposed else weight
    else:
        weight = _turned(g, weight, layer.groups) if layer.transposed else weight
        weight = regrouped(g, weight, layer.groups, groups)
    shape = [int(size) for size in value(weight).shape]
    return weight if len(shape) == dims + 2 else g(aten.reshape.default, weight, [*shape[:2], *[1] * dims])


def _turned(g: Builder, weight: Node, groups: int) -> Node:
    """``[groups * a, b, *taps]`` as ``[groups * b, a, *taps]``, each group by itself."""
    if groups == 1:
        return g(aten.transpose.int, weight, 0, 1)
    a, b, *taps = (int(size) for size in value(weight).shape)
    split = g(aten.reshape.default, weight, [groups, a // groups, b, *taps])
    return g(aten.reshape.default, g(aten.transpose.int, split, 1, 2), [groups * b, a // groups, *taps])


def product(g: Builder, first: Node, second: Node, groups: int, reaches: tuple[Reach, Reach]) -> Node:
    """The kernel of two in a row, both of so many groups."""
    if value(first).dim() == value(second).dim() == 2:
        return g(aten.mm.default, second, first)
    if reaches[1].size == 1:
        return _mixed_rows(g, first, second, groups)
    if reaches[0].size == 1:
        return _mixed_columns(g, first, second, groups)
    return _convolved(g, first, second, groups, reaches)


def _mixed_rows(g: Builder, first: Node, second: Node, groups: int) -> Node:
    """The product where the second kernel has one tap."""
    hidden, inputs, *taps = (int(size) for size in value(first).shape)
    outputs = int(value(second).shape[0])
    left = g(aten.reshape.default, second, [groups, outputs // groups, hidden // groups])
    right = g(aten.reshape.default, first, [groups, hidden // groups, inputs * math.prod(taps)])
    return g(aten.reshape.default, g(aten.bmm.default, left, right), [outputs, inputs, *taps])


def _mixed_columns(g: Builder, first: Node, second: Node, groups: int) -> Node:
    """The product where the first kernel has one tap."""
    outputs, hidden, *taps = (int(size) for size in value(second).shape)
    inputs = int(value(first).shape[1])
    left = g(aten.transpose.int, g(aten.reshape.default, first, [groups, 1, hidden, inputs]), 2, 3)
    right = g(aten.reshape.default, second, [groups, outputs // groups, hidden, math.prod(taps)])
    return g(aten.reshape.default, g(aten.matmul.default, left, right), [outputs, inputs, *taps])


def _convolved(g: Builder, first: Node, second: Node, groups: int, reaches: tuple[Reach, Reach]) -> Node:
    """The product in general: each tap of the second kernel places the first one, as a transposed convolution does."""
    whole = composed(*reaches)
    outputs, hidden, *taps = (int(size) for size in value(second).shape)
    inputs = int(value(first).shape[1])
    x = g(aten.reshape.default, second, [groups, outputs // groups, hidden, *taps])
    x = g(aten.reshape.default, g(aten.transpose.int, x, 0, 1), [outputs // groups, groups * hidden, *taps])
    parts = zip(reaches[0].taps, reaches[0].stride, reaches[1].taps, whole.taps, strict=True)
    # taps of one are at no distance
    steps = [(s * b.step // w.step if b.count > 1 else 1, a.step // w.step if a.count > 1 else 1)
             for a, s, b, w in parts]  # fmt: skip
    none = [0] * len(taps)
    y = g(aten.convolution.default, x, first, None, [outer for outer, _ in steps], none, [inner for _, inner in steps],
          True, none, groups)  # fmt: skip
    y = g(aten.reshape.default, y, [outputs // groups, groups, inputs, *whole.kernel])
    return g(aten.reshape.default, g(aten.transpose.int, y, 0, 1), [outputs, inputs, *whole.kernel])


def bias(g: Builder, first: affine.Layer, second: affine.Layer) -> Node | None:
    """What the second layer makes of the first one's bias, with its own: ``[O]``, or None where neither has one."""
    if first.bias is None:
        return second.bias
    groups = second.groups if isinstance(second, Convolution) else 1
    weight = kernel(g, second, groups, len(reach(second).taps))
    outputs, hidden, *taps = (int(size) for size in value(weight).shape)
    if taps:
        weight = g(aten.sum.dim_IntList, weight, list(range(2, 2 + len(taps))))
    if groups > 1:
        weight = g(aten.reshape.default, weight, [groups, outputs // groups, hidden])
        moved = g(aten.bmm.default, weight, g(aten.reshape.default, first.bias, [groups, hidden, 1]))
        moved = g(aten.reshape.default, moved, [outputs])
    else:
        moved = g(aten.mv.default, weight, first.bias)
    return moved if second.bias is None else g(aten.add.Tensor, moved, second.bias)


def like(g: Builder, layer: affine.Layer, x: Node, weight: Node, bias: Node | None, groups: int) -> Node:
    """A layer of the same reach and spelling over another input, kernel and bias."""
    if isinstance(layer, Linear):
        stored = g(aten.t.default, weight) if layer.stored_transposed else weight
        return affine.with_weights(g, layer, x, stored, bias)
    stored = _turned(g, weight, groups) if layer.transposed else weight
    dtype = value(layer.weight).dtype
    given = {**arguments(layer.node), "input": x, "weight": affine.cast(g, stored, dtype), "groups": groups}
    given["bias"] = None if bias is None else affine.cast(g, bias, dtype)
    return g(layer.node.target, *given.values())


def convolution(g: Builder, whole: Reach, layer: affine.Layer, weight: Node, bias: Node | None, groups: int) -> Node:
    """A plain convolution in the place of ``layer`` that reads there, with padding that :func:`is_spelled`."""
    plain, same = _CONVOLUTIONS[len(whole.taps)]
    x, dtype = layer.input, value(layer.weight).dtype
    weight, bias = affine.cast(g, weight, dtype), bias and affine.cast(g, bias, dtype)
    dilation = [part.step for part in whole.taps]
    if any(part.low != part.high for part in whole.taps):
        return g(same, x, weight, bias, list(whole.stride), "same", dilation, groups)
    return g(plain, x, weight, bias, list(whole.stride), [part.low for part in whole.taps], dilation, groups)


def is_spelled(whole: Reach) -> bool:
    """Whether one convolution has this padding: equal on both sides, or that of ``padding='same'``."""
    return all(part.low == part.high for part in whole.taps) or (
        all(step == 1 for step in whole.stride)
        and all((part.low, part.high) == (part.extent // 2, part.extent - part.extent // 2) for part in whole.taps)
    )
