"""A call of one of our operators in the place of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

BUFFERS = "native_"
"""What the names of packed weights begin with."""


def insert(
    module: GraphModule, node: Node, operator: Callable[..., Tensor], arguments: Sequence[Any], name: str
) -> Node:
    """Call an operator behind a node; nothing reads it yet.

    Args:
        module: changed.
        node: what stands there.
        operator: what is called.
        arguments: tensors among them become buffers of the module.
        name: tells these buffers from those of other calls.
    """
    graph, read = module.graph, list(arguments)
    for place, argument in enumerate(read):
        if isinstance(argument, Tensor):
            module.register_buffer(buffer := f"{BUFFERS}{name}_{place}", argument)
            with graph.inserting_before(node):
                read[place] = graph.get_attr(buffer)
    with graph.inserting_after(node):
        return graph.call_function(operator, tuple(read))


def take_over(node: Node, result: Node) -> Node:
    """Let a result be read instead of a node; the result."""
    node.replace_all_uses_with(result)
    result.meta = {key: entry for key, entry in node.meta.items() if key != "val"}
    return result


def leaves(node: Node) -> bool:
    """Whether the memory of a node's value is handed to the caller."""
    return any(map(_hands_on, node.users))


def _hands_on(user: Node) -> bool:
    is_view = isinstance(user.target, torch._ops.OpOverload) and user.target.is_view
    return leaves(user) if is_view or user.target is getitem else user.op == "output"
