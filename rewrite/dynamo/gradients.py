"""Regions without gradients, written into the program itself.

Dynamo leaves calls that switch the mode between the operators. A rewrite moves and replaces operators, so afterwards
each must mean the same wherever it stands: what such a region gives is detached.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite.dynamo.decline import Declined
from rewrite.provenance import location
from rewrite.trace.errors import place

aten = torch.ops.aten

_SET_GRAD = torch._C._set_grad_enabled


def detach_regions(graph: fx.Graph, differentiate: bool) -> None:
    """Detach what regions without gradients compute, where it leaves them, and drop the calls that switch the mode.

    Args:
        graph: changed in place.
        differentiate: whether gradients are on at its beginning.

    Raises:
        Declined: gradients are switched on inside a graph that begins without them.
    """
    enabled = differentiate
    inside: set[Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _SET_GRAD:
            enabled = bool(node.args[0])
            if enabled and not differentiate:
                raise Declined(f"gradients are switched on{place(location(node))} inside a call without them")
            graph.erase_node(node)
        elif node.op == "call_function" and differentiate and not enabled:
            inside.add(node)
    for node in inside:
        leaving = [user for user in node.users if user not in inside]
        if leaving and isinstance(node.meta.get("val"), Tensor):
            _detach(graph, node, leaving)


def _detach(graph: fx.Graph, node: Node, readers: list[Node]) -> None:
    with graph.inserting_after(node):
        detached = graph.call_function(aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, detached)
