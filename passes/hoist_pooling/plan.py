"""What a pool over the outputs of a layer becomes: the part that moves before the layer, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from passes import affine
from passes.hoist_pooling.extent import Extent, plain, transposed
from rewrite.flops import Sizes, flops
from rewrite.ops import Convolution, Linear, value
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewrite.graph import Graph


@dataclass(frozen=True)
class Plan:
    """A pool over the outputs of a layer.

    Attributes:
        layer: the layer.
        tokens: the dimensions along which a linear layer is applied, and which are averaged before it.
        extents: what is averaged before a convolution, for each pooled dimension.
        channels: whether the output channels are reduced, so that a mean or sum of rows takes the weight's place.
        rest: dimensions that are still reduced at the end.
    """

    layer: affine.Layer
    tokens: tuple[int, ...]
    extents: Mapping[int, Extent]
    channels: bool
    rest: tuple[int, ...]


def plan(graph: Graph, layer: affine.Layer, kind: str, dims: Sequence[int]) -> Plan | Refusal | None:
    """How a mean or sum of a layer's outputs along ``dims`` is taken before the layer, or why it is not.

    None where no dimension can be moved.
    """
    refusal = affine.layer_refusal(graph, layer)
    if isinstance(layer, Convolution) and not layer.batched:
        return refusal
    made = _of_linear(layer, kind, dims) if isinstance(layer, Linear) else _of_convolution(layer, dims)
    if made is None:
        return None
    if refusal is None and isinstance(made, Plan):
        refusal = _dearer(made, Sizes(graph))
    return refusal or made


def _of_linear(layer: Linear, kind: str, dims: Sequence[int]) -> Plan | None:
    shape: Sequence[Any] = value(layer.node).shape
    channel = len(shape) - 1
    # a sum of biases takes a number of them
    movable = [dim for dim in dims if dim != channel and (kind == "mean" or isinstance(shape[dim], int))]
    if not movable and channel not in dims:
        return None
    rest = tuple(dim for dim in dims if dim != channel and dim not in movable)
    return Plan(layer, tuple(movable), {}, channel in dims, rest)


def _of_convolution(conv: Convolution, dims: Sequence[int]) -> Plan | Refusal | None:
    pooled = [dim for dim in dims if dim >= 2]
    if not pooled and 1 not in dims:
        return None
    if conv.transposed and 0 < len(pooled) < conv.dims:
        return Refusal("only some of the dimensions of a transposed convolution are pooled", conv.node,
                       "pool over all of them")  # fmt: skip
    extents: dict[int, Extent] = {}
    for dim in pooled:
        found = _extent(conv, dim)
        if isinstance(found, Refusal):
            return found
        extents[dim] = found
    return Plan(conv, (), extents, 1 in dims, tuple(dim for dim in dims if dim == 0))


def _extent(conv: Convolution, dim: int) -> Extent | Refusal:
    size: Any = value(conv.input).shape[dim]
    outputs: Any = value(conv.node).shape[dim]
    if not isinstance(size, int) or not isinstance(outputs, int):
        return Refusal("the size of the image is not fixed", conv.node, "fix it; only the batch size may vary")
    axis = dim - 2
    make = transposed if conv.transposed else plain
    found = make(size, conv.kernel[axis], conv.stride[axis], conv.dilation[axis], conv.padding[axis][0], outputs)
    if found is not None:
        return found
    if conv.transposed:
        return Refusal("padding crops everything that comes from some positions of the input", conv.node,
                       "use less padding")  # fmt: skip
    return Refusal("the windows skip positions between those that they read", conv.node,
                   "use a stride and a dilation without gaps")  # fmt: skip


def _dearer(made: Plan, sizes: Sizes) -> Refusal | None:
    """The refusal of a plan that needs no less arithmetic than the layer and the pool."""
    node = made.layer.node
    before = flops(node, sizes) + sizes.elements(node)
    after = _flops_of_linear(made, sizes) if isinstance(made.layer, Linear) else _flops_of_convolution(made, sizes)
    if after < before:
        return None
    return Refusal(f"pooling first takes {after} operations, and {called(node)} with the pool behind it {before}", node)


def _flops_of_linear(made: Plan, sizes: Sizes) -> int:
    layer = made.layer
    assert isinstance(layer, Linear)
    shape = list(sizes.shape(layer.input))
    averaged = math.prod(shape) if made.tokens else 0
    for dim in made.tokens:
        shape[dim] = 1
    return averaged + 2 * math.prod(shape) * (1 if made.channels else layer.out_features)


def _flops_of_convolution(made: Plan, sizes: Sizes) -> int:
    conv = made.layer
    assert isinstance(conv, Convolution)
    shape, result, taps = list(sizes.shape(conv.input)), list(sizes.shape(conv.node)), list(conv.kernel)
    averaged = 0
    for dim, extent in made.extents.items():
        shape[dim] = extent.read
    # those that become one element are averaged together, the others one after the other
    whole = [dim for dim, extent in made.extents.items() if extent.is_mean]
    for group in ([whole] if whole else []) + [[d] for d in made.extents if d not in whole and made.extents[d].repeats]:
        averaged += math.prod(shape)
        for dim in group:
            shape[dim] = made.extents[dim].positions
    for dim, extent in made.extents.items():
        result[dim], taps[dim - 2] = 1, extent.positions
    if conv.transposed and not made.extents:
        return averaged + 2 * math.prod(shape) * math.prod(taps)
    inputs = conv.in_channels if made.channels else conv.in_channels // conv.groups
    result[1] = 1 if made.channels else conv.out_channels
    return averaged + 2 * math.prod(result) * inputs * math.prod(taps)
