"""What is kept of a match so that it can be tried again without the model: both sides and their inputs, as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite.source import RESERVED, Body, cone, literal, size_text, tuple_text
from rewrite.verify.facts import Fact, Role, facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.rule import Match

GIVEN = 256
"""Index tables and masks of at most so many elements are kept, and weights whose values a rule reads; larger ones are
drawn."""


ROUNDED = "rounded"
"""What a rule promises whose weights are the model's up to a few roundings in their own dtype."""


@dataclass(frozen=True)
class Repro:
    """Both sides of a match, as lines of Python that need torch alone, and holding no tensor.

    Attributes:
        fidelity: what the rule promises, the value of a :class:`~rewrite.rule.Fidelity`, or :data:`ROUNDED`.
        outputs: names of what both sides compute.
        inputs: one assignment for each boundary value, in terms of the batch size ``N`` and of a function ``draw``.
        old, new: the bodies of two functions of these values; both return a tuple. Dtypes are bare names.
    """

    fidelity: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    old: tuple[str, ...]
    new: tuple[str, ...]


def record(graph: Graph, match: Match, old: Fragment, new: Fragment) -> Repro:
    """Keep a match as text.

    Weight algebra is computed as the rewritten program has it: in float64, rounded once. A value that is folded is what
    this gives; beside it the old side runs operator by operator, which shows what folding changes.
    """
    known = facts(old, new)
    for node in new.folds.values():
        for part in cone(node, known):
            known.update((leaf, Fact()) for leaf in part.all_input_nodes if leaf.op == "get_attr" and leaf not in known)
    names = {node: f"{node.name}_" if node.name in RESERVED else node.name for node in known}
    promise = ROUNDED if match.rule.rounds_weights else match.rule.fidelity.value
    reads = match.rule.reads_values
    inputs = tuple(f"{names[node]} = {_drawn(graph, node, fact, reads)}" for node, fact in known.items())
    return Repro(
        promise, tuple(node.name for node in match.outputs), inputs,
        Body(names, algebra=not new.folds).fragment(old), Body(names).fragment(new),
    )  # fmt: skip


def _drawn(graph: Graph, node: Node, fact: Fact, reads_values: bool) -> str:
    """The expression that draws a boundary value; weights with their qualified names behind it."""
    value: Any = node.meta.get("val")
    text = _expression(value, fact)
    telling = graph.is_constant(node) and isinstance(value, Tensor) and (reads_values or not _is_floating(value))
    if telling and value.numel() > GIVEN and reads_values:
        return f"{text}{_comment(node) or '  #'}: the rule holds for its values in the model, which are not kept"
    if telling and value.numel() <= GIVEN:
        device = "" if value.device.type == "cpu" else f', device="{value.device}"'
        text = f"torch.tensor({graph.value(node).tolist()!r}, dtype={literal(value.dtype)}{device})"
    return f"{text}{_comment(node)}"


def _is_floating(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _comment(node: Node) -> str:
    return f"  # {node.target}" if node.op == "get_attr" else ""


def _expression(value: Any, fact: Fact) -> str:
    if isinstance(value, (tuple, list)):
        return tuple_text([_expression(item, fact) for item in value])
    if not isinstance(value, Tensor):
        return size_text(value)
    parts = [f'"{fact.role.name.lower()}"', tuple_text([*map(size_text, value.shape)]), literal(value.dtype)]
    if fact.role in (Role.KERNEL, Role.INDEX):
        parts.append(str(fact.fan_in if fact.role == Role.KERNEL else fact.bound))
    order = _memory_order(value)
    if order:
        parts.append(f"order={order}")
    if value.device.type != "cpu":
        parts.append(f'device="{value.device}"')
    return f"draw({', '.join(parts)})"


def _memory_order(value: Tensor) -> tuple[int, ...]:
    """The dimensions from the outermost to the innermost in memory, or none where that is their own order.

    Strides that are symbols count as in order, and so do those of repeated dimensions and of sizes of one.
    """
    strides: Sequence[Any] = value.stride() if value.layout == torch.strided else ()
    if not all(isinstance(stride, int) for stride in strides):
        return ()
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    sizes: Sequence[Any] = value.shape
    telling = [dim for dim in order if strides[dim] and not (isinstance(sizes[dim], int) and sizes[dim] == 1)]
    return () if telling == sorted(telling) else tuple(order)
