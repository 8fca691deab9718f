"""What a program costs, counted from the graph alone: operators, weights, arithmetic, memory traffic.

Counts are numbers, or formulas where sizes count as :class:`rewrite.symbolic.Symbols`. They do not depend on the
machine, and say how much smaller a program became, not how much faster.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from rewrite.arithmetic import Number
from rewrite.flops import Sizes, flops, tensors
from rewrite.ops import Cast, Reshape, value, view

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Counts:
    """Static counts of a program, for one sample where its batch is symbolic, or as formulas. They add up.

    Attributes:
        weight_bearing: operators that depend on the call's inputs and read a floating-point weight, directly or
            through code on weights alone: convolutions, linear layers, products with a weight, norms with weights,
            embeddings, learned scales and positions. An operator that reads several weights counts once.
        operators: all operators that give tensors, views and weight code included; not ``getitem``, not sizes.
        parameters: elements of the floating-point and complex weights in use. Statistics of norms and constants are
            among them; a tensor that goes by several names counts once.
        weight_bytes: bytes of all weights in use, integers too.
        flops: floating-point operations; see :mod:`rewrite.flops`.
        activation_bytes: bytes that operators on the call's inputs write. A view writes nothing.
    """

    weight_bearing: int = 0
    operators: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    flops: Number = 0
    activation_bytes: Number = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, spec.name) + getattr(other, spec.name) for spec in fields(self)))


@dataclass(frozen=True)
class Costs:
    """The counts of a program before and after, as formulas of its symbolic sizes; N is the batch.

    Attributes:
        before, after: numbers where they are the same for every size, else ``sympy`` expressions.
    """

    before: Counts
    after: Counts


def count(graph: Graph, sizes: Sizes | None = None) -> Counts:
    """The counts of a graph. Unknown operators count by their elements; nothing is executed.

    Args:
        graph: only read.
        sizes: what its symbolic sizes count as; by default the batch as one sample.
    """
    sizes = Sizes(graph) if sizes is None else sizes
    total = _weights(graph)
    bearing = _weight_values(graph)
    for node in graph.calls():
        if node.target is operator.getitem or not tensors(node):
            continue
        constant = graph.is_constant(node)
        total += Counts(
            weight_bearing=int(not constant and any(argument in bearing for argument in values_read(node))),
            operators=1,
            flops=flops(node, sizes),
            activation_bytes=0 if constant else written_bytes(node, sizes),
        )
    return total


def _weights(graph: Graph) -> Counts:
    read = {argument for node in graph.nodes for argument in values_read(node)}
    found: dict[tuple[object, ...], Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node in read:
            tensor = graph.weights[str(node.target)]
            found[_identity(tensor)] = tensor
    return Counts(
        parameters=sum(tensor.numel() for tensor in found.values() if _is_real_or_complex(tensor)),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in found.values()),
    )


def values_read(node: Node) -> list[Node]:
    """The nodes whose values an operator reads, without those that only say which dtype and device its result has."""
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target._opname
        if node.target is aten.to.other:
            return node.all_input_nodes[:1]
        if name.startswith("new_") or name.endswith("_like"):
            return []
    return node.all_input_nodes


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same elements of the same memory."""
    pointer = tensor.data_ptr()
    return (pointer, tensor.dtype, tensor.shape, tensor.stride()) if pointer else (id(tensor),)


def _is_real_or_complex(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _weight_values(graph: Graph) -> set[Node]:
    """The constant nodes whose value comes from a floating-point weight."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            if any(_is_real_or_complex(tensor) for tensor in tensors(node)):
                found.add(node)
        elif any(argument in found for argument in values_read(node)) and graph.is_constant(node):
            found.add(node)
    return found


def written_bytes(node: Node, sizes: Sizes) -> Number:
    """The bytes that an operator writes; a view, and a reshape that needs no copy, writes none."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.is_view:
        found = view(node)
        if isinstance(found, Reshape):
            views = sizes.views(value(node.all_input_nodes[0]), value(node).shape)
            return 0 if views else tensor_bytes(node, sizes)
        if not isinstance(found, Cast) or value(found.input).dtype == found.dtype:
            return 0
    return tensor_bytes(node, sizes)


def tensor_bytes(node: Node, sizes: Sizes) -> Number:
    """The bytes of the tensors that a node gives."""
    return sum(sizes.elements(tensor) * tensor.dtype.itemsize for tensor in tensors(node))
