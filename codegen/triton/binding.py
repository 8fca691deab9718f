"""Kernels put into a flat module in place of the operators that they compute."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from codegen.triton.operators import operator_of
from codegen.triton.region import base
from rewrite.errors import LoweringError
from rewrite.graph import is_random
from rewrite.lowering import called
from rewrite.ops import reduction, value

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node

    from codegen.triton.kernel import Kernel
    from codegen.triton.operators import Make

aten = torch.ops.aten


def bind(module: GraphModule, kernels: Sequence[Kernel], run: Make, kind: str) -> None:
    """Let a module call kernels; it gives values of the same shapes, strides and dtypes as before.

    Args:
        module: flat, with recorded values. Changed.
        kernels: of regions of its graph without common operators.
        run: makes the function that computes a kernel, as for :func:`~codegen.triton.operators.operator_of`.
        kind: of device, as in :func:`~codegen.triton.operators.operator_of`.
    """
    replaced: dict[Node, Node] = {}
    drawn = [node for node in module.graph.nodes if is_random(node)]
    targets = [operator_of(kernel, run, kind) for kernel in kernels]  # while they read what they were made for
    for kernel, target in zip(kernels, targets, strict=True):
        _call(module, kernel, target, replaced)
    _sort(module.graph)
    if drawn != [node for node in module.graph.nodes if is_random(node)]:
        raise LoweringError("random numbers would be drawn in another order with kernels; pass lower='eager'")
    module.graph.eliminate_dead_code()
    module.recompile()


def _sort(graph: Graph) -> None:
    """Put nodes behind what they read; otherwise they stay in order, as random operators have to."""
    waiting: dict[Node, list[Node]] = {}
    placed: set[Node] = set()
    order: list[Node] = []

    def place(node: Node) -> None:
        stack = [node]
        while stack:
            each = stack.pop()
            missing = next((read for read in each.all_input_nodes if read not in placed), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(each)
                continue
            placed.add(each)
            order.append(each)
            stack += reversed(waiting.pop(each, []))

    for node in list(graph.nodes):
        place(node)
    for before, node in itertools.pairwise(order):
        before.append(node)


def _call(module: GraphModule, kernel: Kernel, target: Any, replaced: dict[Node, Node]) -> None:
    """Put a call of one kernel behind the last of its operands."""
    region, graph = kernel.region, module.graph
    laid = {node: _laid_out(module, node, strides, region.nodes) for node, strides in kernel.layouts.items()}
    order = {node: i for i, node in enumerate(graph.nodes)}
    operands = tuple(replaced.get(node, node) for node in kernel.operands)
    first = max((order[node] for node in graph.nodes if node.op in ("placeholder", "get_attr")), default=0)
    last = max(operands, key=order.__getitem__)
    with graph.inserting_after(last if order[last] >= first else list(order)[first]):
        call = graph.call_function(target, tuple(laid.get(node, node) for node in operands))
    call.meta = {key: region.main.node.meta[key] for key in ("stack_trace", "nn_module_stack")
                 if key in region.main.node.meta}  # fmt: skip
    call.meta["val"] = called(call)
    items = [call] if len(kernel.results) == 1 else _items(module, call, len(kernel.results))
    after = items[-1]
    for node, item in zip(region.outputs, items, strict=True):
        made = item
        if node in region.totals:
            made = _summed(module, node, item, after, region.axes)
            after = made
        _take_over(node, made, set(region.nodes), call)
        replaced[node] = made


def _laid_out(module: GraphModule, node: Node, strides: tuple[int, ...], inside: Collection[Node]) -> Node:
    """A constant with other strides: a new one beside that which is there where others than the region read it."""
    name, recorded = str(node.target), value(node)
    if recorded.stride() == strides:
        return node
    tensor = operator.attrgetter(name)(module)
    laid = tensor.new_empty_strided(tensor.shape, strides).copy_(tensor.detach())
    same = [each for each in module.graph.find_nodes(op="get_attr") if each.target == name]
    if all(user in inside for each in same for user in each.users):
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        delattr(owner, last)
        owner.register_buffer(last, laid)
    else:
        name = next(name for i in itertools.count() if not hasattr(module, name := f"laid_out{i}"))
        module.register_buffer(name, laid)
    with module.graph.inserting_after(node):
        made = module.graph.get_attr(name)
    made.meta["val"] = recorded.new_empty_strided(recorded.shape, strides)
    return made


def _items(module: GraphModule, call: Node, count: int) -> list[Node]:
    items: list[Node] = []
    after = call
    for i in range(count):
        with module.graph.inserting_after(after):
            after = module.graph.call_function(operator.getitem, (call, i))
        after.meta["val"] = call.meta["val"][i]
        items.append(after)
    return items


def _take_over(node: Node, made: Node, inside: set[Node], call: Node) -> None:
    """Let all who read a value, or a view of it, outside of the region read what the kernel gives."""
    readers = [user for user in node.users if user not in inside or (base(user) is node and user is not node)]
    for user in readers:
        if user is not call:
            user.replace_input_with(node, made)


def _summed(module: GraphModule, node: Node, parts: Node, after: Node, axes: Mapping[Node, Any]) -> Node:
    """A total from its parts ``[N, slots, C]``."""
    made = reduction(node)
    assert made is not None
    shape = [int(size) for size in value(node).shape]
    known = axes[made.input]
    order = [name for dim, axis in enumerate(known) if dim not in made.dims for name in axis]
    graph = module.graph

    def then(target: Any, *args: Any, **kwargs: Any) -> Node:
        nonlocal after
        with graph.inserting_after(after):
            after = graph.call_function(target, args, kwargs)
        after.meta["val"] = called(after)
        return after

    x = then(aten.sum.dim_IntList, parts, [1])
    if order == ["c", "n"]:
        x = then(aten.clone.default, then(aten.transpose.int, x, 0, 1), memory_format=torch.contiguous_format)
    if made.kind == "mean":
        x = then(aten.div.Scalar, x, math.prod(int(value(made.input).shape[dim]) for dim in made.dims))
    x = then(aten.reshape.default, x, shape)
    return then(aten._to_copy.default, x, dtype=value(node).dtype) if value(node).dtype != torch.float32 else x
