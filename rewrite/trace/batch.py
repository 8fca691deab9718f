"""Which inputs carry the batch, and example inputs that do not pin it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Plan:
    """One way to trace: the flat inputs whose dimension 0 is the batch; none for a static trace."""

    carriers: tuple[int, ...] = ()


def plans(flat: Sequence[Any]) -> list[Plan]:
    """The ways to try, most general first, static last."""
    sizes = {i: leaf.shape[0] for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if not sizes:
        return [Plan()]
    size = next(iter(sizes.values()))
    carriers = tuple(i for i, other in sizes.items() if other == size)
    if size == 0:
        return [Plan()]
    # a table that happens to have as many rows as the batch is static
    narrower = [Plan(carriers[:1])] if len(carriers) > 1 else []
    return [Plan(carriers), *narrower, Plan()]


def example(
    plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], module: torch.nn.Module
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The example call to trace and its ``dynamic_shapes``.

    A batch of one is doubled: ``export`` takes a size of 1 for a constant. A tensor that is given twice, or is a weight
    of the module, is copied: ``export`` takes arguments that are one object for one argument. A tensor of inference
    mode is copied as well, since it cannot be traced with gradients.
    """
    flat, spec = compat.tree_flatten((args, kwargs))
    taken = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for i, leaf in enumerate(flat):
        if not isinstance(leaf, Tensor):
            continue
        if i in plan.carriers and leaf.shape[0] == 1:
            flat[i] = torch.cat([leaf.detach()] * 2).requires_grad_(leaf.requires_grad)
        elif id(leaf) in taken or leaf.is_inference():
            flat[i] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        taken.add(id(leaf))
    args, kwargs = compat.tree_unflatten(flat, spec)
    if not plan.carriers:
        return args, kwargs, None
    shapes = torch.export.ShapesCollection()
    dimension = torch.export.Dim("batch")
    for i in plan.carriers:
        shapes[flat[i]] = {0: dimension}
    return args, kwargs, shapes.dynamic_shapes(module, args, kwargs)


def squeezes_batch(graph: Graph) -> Node | None:
    """An operator that drops the batch dimension when it is 1, so that ranks depend on the batch; None without one.

    Recorded values are of a larger batch and tell nothing of it.
    """
    for node in graph.calls():
        if node.target in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
            sizes: tuple[Any, ...] = tuple(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
            chosen: Any = node.args[1] if len(node.args) > 1 else range(len(sizes))
            if any(isinstance(sizes[d], torch.SymInt) for d in ([chosen] if isinstance(chosen, int) else chosen)):
                return node
    return None
