"""The example call that a graph was captured for, as long as its tensors are there.

Rules may judge by it what real inputs are like. A graph neither keeps the tensors alive nor has them in files.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewrite.graph import Graph

KEY = "example"
"""Where in ``meta`` of an input the reference is."""


def remember(graph: Graph, flat: Sequence[Any]) -> None:
    """Let the inputs of a graph refer to the tensors of its example, one for each."""
    for node, leaf in zip(graph.inputs, flat, strict=True):
        if isinstance(leaf, Tensor) and not isinstance(leaf, compat.FakeTensor):
            node.meta[KEY] = weakref.ref(leaf)


def recall(graph: Graph) -> list[Any] | None:
    """The flat inputs of the example, or None where one of them is gone or never was."""
    found = [node.meta[KEY]() if KEY in node.meta else _number(node.meta.get("val")) for node in graph.inputs]
    gone = [leaf is None and KEY in node.meta for node, leaf in zip(graph.inputs, found, strict=True)]
    never = (isinstance(leaf, (compat.FakeTensor, torch.SymInt, torch.SymFloat)) for leaf in found)
    return None if any(gone) or any(never) else found


def _number(value: Any) -> Any:
    """What a size was in the example; reading it would fix it."""
    hint = value.node.hint if isinstance(value, torch.SymInt) else None
    return value if hint is None else int(hint)
