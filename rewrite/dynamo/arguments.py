"""The arguments of a graph of Dynamo: which are weights, and what they are called in the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from rewrite import compat
from rewrite.names import clashes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule

_PART = re.compile(r"\._(?P<kind>modules|parameters|buffers)\['(?P<key>[^']*)'\]")


@dataclass(frozen=True)
class Argument:
    """One argument of the graph.

    Attributes:
        name: for a weight, its name in the model, or a unique one like it; for an input, the placeholder's.
        is_weight: it is a parameter or a buffer of a module, or a ``Parameter`` from elsewhere.
        recorded: the fake tensor or symbolic number.
    """

    name: str
    is_weight: bool
    recorded: Any


def arguments_of(module: GraphModule, examples: Sequence[Any]) -> tuple[Argument, ...]:
    """The arguments of a graph, in order.

    Args:
        module: the graph, as Dynamo gives it.
        examples: the real arguments.
    """
    found: list[Argument] = []
    taken: set[str] = set()
    for node, value in zip(module.graph.find_nodes(op="placeholder"), examples, strict=True):
        name = _weight_name(compat.dynamo_source(node))
        is_weight = isinstance(value, nn.Parameter) or bool(name)
        name = _unique(name or str(node.target), taken) if is_weight else str(node.target)
        taken.add(name)
        found.append(Argument(name, is_weight, node.meta["example_value"]))
    return tuple(found)


def _weight_name(source: str) -> str:
    """The qualified name of a parameter or buffer, '' where the source is none."""
    parts = list(_PART.finditer(source))
    if not parts or parts[-1].end() != len(source) or parts[-1]["kind"] == "modules":
        return ""
    return ".".join(part["key"] for part in parts)


def _unique(name: str, taken: set[str]) -> str:
    """The name, in a module of its own where another weight has it or has it as the path to its module."""
    candidate, number = name, 0
    while clashes(candidate, taken):
        number += 1
        candidate = f"other_{number}.{name}"
    return candidate
