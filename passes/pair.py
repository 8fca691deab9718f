"""Two layers in a row: what stands between them, whether they are one layer, at which cost, and what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from passes import affine, compose, layout
from passes.costs import Cost, groups, weight_bytes, width
from rewrite.flops import Sizes, flops
from rewrite.ops import Convolution, Copy, Linear, Pad, Permute, Reshape, value, view, view_as
from rewrite.provenance import called, function_name, origin
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten


@dataclass(frozen=True)
class Step:
    """An operator between two layers, and which dimension of its result has the channels."""

    node: Node
    dim: int


def below(second: affine.Layer) -> tuple[Node, tuple[Step, ...], int]:
    """What a layer reads, below permutations, reshapes, copies and pads that keep its channels a dimension.

    Returns that node, the operators between in graph order, and which dimension of the node has the channels.
    """
    node = second.input
    dim = value(node).dim() - 1 if isinstance(second, Linear) else 1
    between: tuple[Step, ...] = ()
    while True:
        below, dim_below = _one_below(node, dim)
        if below is None:
            return node, between, dim
        between = (Step(node, dim), *between)
        node, dim = below, dim_below


def _one_below(node: Node, dim: int) -> tuple[Node | None, int]:
    found = view(node)
    source: int | None = None
    if isinstance(found, Permute):
        source = found.order[dim]
    elif isinstance(found, Reshape):
        source = layout.kept_dimension(value(found.input).shape, value(node).shape, dim)
    elif isinstance(found, Copy) or (isinstance(found, Pad) and not _touches(found, dim)):
        source = dim
    if source is None or not isinstance(found, (Permute, Reshape, Copy, Pad)):
        return None, dim
    return found.input, source


def _touches(pad: Pad, dim: int) -> bool:
    """Whether a pad changes the size of a dimension."""
    place = dim - (value(pad.node).dim() - len(pad.amounts))
    return place >= 0 and any(pad.amounts[place])


@dataclass(frozen=True)
class Pair:
    """Two layers in a row and what stands between them."""

    first: affine.Layer
    second: affine.Layer
    between: tuple[Step, ...]

    @property
    def reaches(self) -> tuple[compose.Reach, compose.Reach]:
        """Where the two read."""
        return compose.reach(self.first), compose.reach(self.second)

    @property
    def kept(self) -> affine.Layer | None:
        """The layer whose reach the merged one has: that beside one of a single tap; None where both have several.

        What stands between is then before the second one, so that the result is laid out as it was, or else behind the
        first one.
        """
        if compose.is_pointwise(self.first):
            return self.second
        return self.first if compose.is_pointwise(self.second) else None

    @property
    def whole(self) -> compose.Reach:
        """Where the merged layer reads."""
        return compose.reach(self.kept) if self.kept is not None else compose.composed(*self.reaches)

    @property
    def groups(self) -> int:
        """The finest groups that both have."""
        return math.gcd(groups(self.first), groups(self.second))

    def form_refusal(self) -> Refusal | None:
        """Why the two are no one layer, whatever it would cost."""
        if self.kept is self.second:
            return None
        for step in self.between:
            if self.kept is None or view_as(step.node, Pad) is not None:
                name = function_name(step.node)
                return Refusal(f"{name} stands between a kernel of several taps and the next layer", step.node,
                               f"take {called(step.node)} out from between")  # fmt: skip
        return self._kernels_refusal() if self.kept is None else None

    def _kernels_refusal(self) -> Refusal | None:
        """Why two kernels of several taps are no one kernel."""
        for layer, other in ((self.first, self.second), (self.second, self.first)):
            if isinstance(layer, Convolution) and layer.transposed:
                return Refusal("a transposed convolution and a kernel of several taps make no convolution", layer.node,
                               f"build {called(other.node)} with kernel_size=1, stride=1 and padding=0")  # fmt: skip
        if not compose.is_spelled(self.whole):
            return Refusal("the merged convolution would pad its two sides differently", self.second.node,
                           "give both of them equal padding on both sides")  # fmt: skip
        return None

    def cost_refusal(self, sizes: Sizes) -> Refusal | None:
        """Why the merged layer would cost more than the two."""
        layers = (self.first, self.second)
        inputs, hidden, outputs = width(self.first)[0], width(self.first)[1], width(self.second)[1]
        macs = inputs // self.groups * outputs * self.whole.size
        item = value(self.second.weight).dtype.itemsize
        biased = any(layer.bias is not None for layer in layers)
        after = Cost(2 * self._positions(sizes) * macs, item * (macs + outputs * biased))
        arithmetic = sum(flops(layer.node, sizes) for layer in layers)
        before = Cost(arithmetic, weight_bytes(layers))
        if after.fits(before):
            return None
        reason = f"merging would take {after} instead of {before}"
        whole = Cost(arithmetic, weight_bytes(layers, shared=True))
        if after.fits(whole):
            return Refusal(f"{reason}, for others read the same weights", self.second.node,
                           "give the two layers weights of their own")  # fmt: skip
        # both figures grow in proportion to the channels between
        step = math.lcm(*map(groups, layers))
        needed = max(math.ceil(now * hidden / then) if then else 0 for now, then in zip(after, whole, strict=True))
        needed = -(-needed // step) * step
        return Refusal(reason, self.second.node, f"give the value between the two at least {needed} channels")

    def _positions(self, sizes: Sizes) -> int:
        """On how many positions the merged kernel is placed."""
        kept = self.kept
        if isinstance(kept, Convolution) and kept.transposed:
            return sizes.elements(kept.input) // kept.in_channels
        return sizes.elements(self.second.node) // width(self.second)[1]

    def border_refusal(self) -> Refusal | None:
        """Why the border would be another: zeros that the second layer reads and the merged one would not."""
        # where a rule made the first layer, what it folded in is the bias, and no argument of the user's layer
        made, first = origin(self.first.node) is not None, called(self.first.node)
        unbiased = "" if made else f"build {first} with bias=False"
        for pad in filter(None, (view_as(step.node, Pad) for step in self.between)):
            if pad.mode != "constant" or not any(amount > 0 for pair in pad.amounts for amount in pair):
                continue
            if pad.fill != 0:
                reason = "the value between the two is padded with a constant other than zero"
                more = f" and {unbiased}" if self.first.bias is not None and unbiased else ""
                return Refusal(reason, pad.node, f"pad with zeros{more}")
            if self.first.bias is not None:
                reason = "the value between the two is padded with zeros, which the first one's bias would move"
                return Refusal(reason, pad.node, unbiased or f"take {called(pad.node)} out from between")
        second = self.second
        if isinstance(second, Linear) or compose.is_pointwise(second):
            return None
        if second.transposed:
            if self.first.bias is None:
                return None
            return Refusal("the first one's bias meets fewer taps of the transposed convolution at its border",
                           second.node, unbiased or f"take the shift out of what is folded into {first}")  # fmt: skip
        if not self.reaches[1].pads:
            return None
        if self.first.bias is not None:
            return Refusal("the second convolution pads with zeros, which the first one's bias would move", second.node,
                           f"{unbiased}, or {called(second.node)} with padding=0" if unbiased
                           else f"build {called(second.node)} with padding=0")  # fmt: skip
        sizes: list[Any] = list(value(self.first.input).shape[2:])
        known = [size if isinstance(size, int) else None for size in sizes]
        if self.kept is None and not compose.ends_in_zeros(*self.reaches, known):
            return Refusal("the second convolution pads with zeros where taps of the first one still find its input",
                           second.node, f"build {called(second.node)} with padding=0")  # fmt: skip
        return None

    def weights(self, g: Builder, groups: int, dims: int) -> tuple[Node, Node | None]:
        """The kernel and the bias of the merged layer, of so many groups and spatial dimensions."""
        first, second = (compose.kernel(g, layer, groups, dims) for layer in (self.first, self.second))
        return compose.product(g, first, second, groups, self.reaches), compose.bias(g, self.first, self.second)

    def build(self, g: Builder) -> Node:
        """The merged layer and what stood between."""
        first, second, kept, groups = self.first, self.second, self.kept, self.groups
        weight, bias = self.weights(g, groups, len(self.whole.taps))
        if kept is None:
            result = compose.convolution(g, self.whole, first, weight, bias, groups)
        elif kept is second:
            x = self._replayed(g, first.input, width(first)[0])
            result = compose.like(g, second, x, weight, bias, groups)
        else:
            merged = compose.like(g, first, first.input, weight, bias, groups)
            result = self._replayed(g, merged, width(second)[1])
        return result

    def _replayed(self, g: Builder, x: Node, channels: int) -> Node:
        """What stands between, over another value of so many channels."""
        below = self.first.node
        for step in self.between:
            found = view(step.node)
            if isinstance(found, Reshape):
                shape = [channels if d == step.dim and size != -1 else size for d, size in enumerate(found.shape)]
                x = g(aten.reshape.default, x, shape)
            else:
                operands = {arg: x if arg is below else arg for arg in step.node.all_input_nodes}
                args, kwargs = fx.map_arg((step.node.args, step.node.kwargs), operands.__getitem__)
                x = g(step.node.target, *args, **kwargs)
            below = step.node
        return x
