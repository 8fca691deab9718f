r"""Shifts that leave little of the model's input, and so have to be made before a layer.

The difference :math:`x - \mu` of numbers near each other is exact. :math:`W x - W \mu` is not: each product is rounded
where it is large, and then most of it cancels. What layers compute was rounded before a shift, so this is of interest
where the model's input itself is shifted, and the example tells whether it is far from zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import evaluate
from rewrite.example import recall
from rewrite.ops import (
    BatchNorm,
    Cast,
    Concatenation,
    Copy,
    Expand,
    Negation,
    Pad,
    Permute,
    Piece,
    Product,
    ProductSum,
    Reshape,
    Roll,
    Select,
    Slice,
    Sum,
    is_tensor,
    view,
)
from rewrite.rule import Refusal
from rewrite.verify import narrowed

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.fold_affine.maps import Map
    from rewrite.graph import Graph

LARGEST = 16
"""So many times as large as what is left an input may be: a digit is lost then."""

_ENOUGH = 64
"""So many elements of a channel tell that it is small, and not these by chance."""

_MANY = 2**20
"""With so many elements the first rows of a batch suffice."""

_FARTHEST = 32

_LINEAR = (BatchNorm, Cast, Concatenation, Copy, Expand, Negation, Pad, Permute, Piece, Product, ProductSum, Reshape,
           Roll, Select, Slice, Sum)  # fmt: skip
"""What may stand between the model's input and a shift."""


def cancellation(graph: Graph, mapped: Map) -> Refusal | None:
    """Why a map of the model's input stays before a layer: its shift takes away most of the example."""
    nodes = _since_inputs(graph, mapped.node) if mapped.shifts else None
    flat = None if nodes is None else recall(graph)
    if nodes is None or flat is None:
        return None
    if any(isinstance(leaf, Tensor) and leaf.numel() > _MANY for leaf in flat):
        flat = narrowed(graph, flat)
    before, after = _sizes(graph, mapped, nodes, flat)
    if not bool((before > LARGEST * after).any()):
        return None
    ratio = float((before / after).max())
    remedy = "subtract it before the model is called, or scale the model's inputs to be near zero"
    if math.isinf(ratio):
        return Refusal(f"nothing is left of the model's input behind {mapped.what}, so folding it would leave rounding",
                       mapped.node, remedy)  # fmt: skip
    digits = round(math.log10(ratio))
    return Refusal(f"the model's input is {float(f'{ratio:.1g}'):.0f} times as large as what is left of it behind "
                   f"{mapped.what}, so folding it would lose {digits} digit{'s' if digits > 1 else ''}",
                   mapped.node, remedy)  # fmt: skip


def _sizes(graph: Graph, mapped: Map, nodes: list[Node], flat: list[Any]) -> tuple[Tensor, Tensor]:
    """How large a map's channels are without its shift and with it, in the mean of squares."""
    env: dict[Node, Any] = dict(zip(graph.inputs, flat, strict=True))
    env.update((node, graph.value(node)) for node in nodes if graph.is_constant(node))
    with torch.no_grad():
        evaluate.run(nodes, env, double=True)
        result = env[mapped.node]
        alone = {node: value for node, value in env.items() if node not in mapped.view.nodes}
        alone[mapped.input] = torch.zeros_like(env[mapped.input])
        evaluate.run(mapped.view.nodes, alone, double=True)
        linear = result - alone[mapped.node]
    others = [dim for dim in range(result.dim()) if dim not in mapped.dims]
    if math.prod(result.shape[dim] for dim in others) < _ENOUGH:
        others = list(range(result.dim()))
    return linear.square().mean(others).sqrt(), result.square().mean(others).sqrt()


def _since_inputs(graph: Graph, node: Node) -> list[Node] | None:
    """A value and all that it is computed from, in order; None where that is more than moves, products and sums."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top in found or top.op == "placeholder":
            continue
        found.add(top)
        if len(found) > _FARTHEST:
            return None
        if graph.is_constant(top):
            continue
        # sizes, and operators with several results, are no tensors
        if top.op != "call_function" or (is_tensor(top) and not isinstance(view(top), _LINEAR)):
            return None
        stack += top.all_input_nodes
    return sorted(found)
