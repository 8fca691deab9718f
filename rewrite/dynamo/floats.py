"""Python floats that Dynamo takes for tensors, of which a graph reads the item."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite import compat
from rewrite.dynamo.decline import Declined

if TYPE_CHECKING:
    from torch.fx import GraphModule


def without_floats(module: GraphModule) -> None:
    """Let Dynamo trace again with the floats that objects hold as constants, such as the momentum of a norm.

    With ``dynamic=True`` it takes them for arguments, though they hardly ever change. Floats that are arguments of the
    user's function, or come out of another graph, do change, and would be traced anew for each value.

    Raises:
        Declined: an argument is a float.
        Exception: Dynamo's request to trace again.
    """
    held = []
    for node in module.graph.find_nodes(op="placeholder"):
        symbol = compat.float_symbol(node)
        if symbol is None:
            continue
        source = compat.dynamo_source(node)
        if not compat.is_static_by_default() and "." in source:
            held.append(symbol)
        else:
            raise Declined(f"the number '{source}' is an argument that changes")
    compat.specialize_floats(held)
