"""What is done to layers put side by side: each of them does its part of it along.

``act(cat(f(x), g(x)) + r)`` becomes ``cat(act(f(x) + r[:, :n]), act(g(x) + r[:, n:]))``, where kernels of our own
compute ``f`` and ``g``: they add and activate while their sums are in registers.
"""

from __future__ import annotations

from operator import getitem
from typing import TYPE_CHECKING, Any

import torch

from codegen.native.operators import ACTIVATIONS, IMAGES, operator
from codegen.native.sites import activation_name, fits
from rewrite.ops import Concatenation, Sum, is_tensor, value, view_as

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

aten = torch.ops.aten

_KERNELS = tuple(map(operator, IMAGES))
_RESIDUAL, _GEOMETRY, _ACTIVATION = 3, 4, 12
"""Places of the arguments of a kernel, and of the activation in its geometry."""


def concatenations(module: GraphModule) -> list[Node]:
    """Those whose parts are all results of kernels that nothing else reads; along which dimension is not said."""
    nodes = module.graph.find_nodes(op="call_function", target=aten.cat.default)
    return [node for node in nodes if _are_kernels(node.args[0], node)]


def absorb(module: GraphModule) -> None:
    """Let kernels whose results are concatenated along their channels do what follows the concatenation.

    Args:
        module: with recorded values and calls of kernels. Changed.
    """
    for node in concatenations(module):
        whole = view_as(node, Concatenation)
        if whole is None or whole.dim != 1:
            continue
        while (user := _only_reader(node)) is not None and (_adds(module, whole, user) or _activates(whole, user)):
            user.replace_all_uses_with(node)
            module.graph.erase_node(user)


def _are_kernels(parts: Any, whole: Node) -> bool:
    alone = all(part.target in _KERNELS and set(part.users) == {whole} for part in parts)
    return alone and len(set(parts)) == len(parts)


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activates(whole: Concatenation, user: Node) -> bool:
    """Let each part apply the activation that ``user`` is."""
    name = activation_name(user) if is_tensor(user) else ""
    if not name or any(map(_has_activation, whole.inputs)):
        return False
    for part in whole.inputs:
        geometry = _geometry(part)
        geometry[_ACTIVATION] = ACTIVATIONS.index(name)
        part.update_arg(_GEOMETRY, geometry)
    return True


def _adds(module: GraphModule, whole: Concatenation, user: Node) -> bool:
    """Let each part add its channels of what ``user`` adds, which has to be there before the first one."""
    found = view_as(user, Sum)
    if found is None or any(term.node is None or term.coefficient != 1 for term in found.terms):
        return False
    left, right = found.operands
    other, first = (right if left is whole.node else left), min(whole.inputs)
    if other is whole.node or not is_tensor(other) or value(other).shape != value(whole.node).shape:
        return False
    free = all(part.args[_RESIDUAL] is None and not _has_activation(part) for part in whole.inputs)
    if not free or not fits(value(other)) or not other < first:
        return False
    sizes = [_geometry(part)[0] for part in whole.inputs]
    graph = module.graph
    with graph.inserting_before(first):
        pieces = graph.call_function(aten.split_with_sizes.default, (other, sizes, 1))
        for i, part in enumerate(whole.inputs):
            part.update_arg(_RESIDUAL, graph.call_function(getitem, (pieces, i)))
    return True


def _geometry(part: Node) -> list[int]:
    found: Any = part.args[_GEOMETRY]
    return list(found)


def _has_activation(part: Node) -> bool:
    return _geometry(part)[_ACTIVATION] != 0
