"""A region in torch's own operators: what its kernel has to give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx import GraphModule

from codegen.triton.axes import Axes
from rewrite.ops import Reduction, is_tensor, reduction, value

if TYPE_CHECKING:
    from torch.fx import Node

    from codegen.triton.kernel import Kernel

aten = torch.ops.aten


def reference(kernel: Kernel) -> GraphModule:
    """A function of a kernel's operands that returns a tuple of what the kernel gives.

    Of sums over pixels the kernel gives parts, of which here the first one is all, and the others are zero.
    """
    region = kernel.region
    graph = fx.Graph()
    mapping: dict[Node, Any] = {node: graph.placeholder(f"operand{i}") for i, node in enumerate(kernel.operands)}

    def operand(node: Node) -> Any:
        return mapping[node] if node in mapping or is_tensor(node) else node.meta["val"]  # a size, which is fixed

    for node in region.main.node.graph.nodes:
        if node in region.nodes and node not in mapping and node not in region.totals:
            args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
            mapping[node] = graph.create_node("call_function", node.target, args, kwargs)
    results = []
    for node, result in zip(region.outputs, kernel.results, strict=True):
        if node in region.totals:
            results.append(_parts(graph, node, mapping, region.axes, result.shape[1]))
        else:
            results.append(mapping[node])
    graph.output(tuple(results))
    return GraphModule(nn.Module(), graph)


def _parts(graph: fx.Graph, node: Node, mapping: dict[Node, Any], axes: Any, slots: int) -> fx.Node:
    """The sums of a value in float32 as ``[N, slots, C]``."""
    made = reduction(node)
    assert made is not None
    known: Axes = axes[made.input]
    wide = graph.call_function(aten._to_copy.default, (mapping[made.input],), {"dtype": torch.float32})
    summed = graph.call_function(aten.sum.dim_IntList, (wide, list(made.dims), True))
    # what is left runs over samples and channels, in either order
    order = [name for axis in known for name in axis if name in "nc"]
    flat = graph.call_function(aten.reshape.default, (summed, _left(made)))
    if order == ["c", "n"]:
        flat = graph.call_function(aten.transpose.int, (flat, 0, 1))
    row = graph.call_function(aten.unsqueeze.default, (flat, 1))
    return graph.call_function(aten.constant_pad_nd.default, (row, [0, 0, 0, slots - 1], 0.0))


def _left(made: Reduction) -> list[int]:
    """The sizes that are not summed over."""
    return [int(size) for dim, size in enumerate(value(made.input).shape) if dim not in made.dims]
