"""How calls run: plans, and the snapshot of plans and weights that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from rewrite.graph import Mutation
    from rewrite.lowered import Lowered
    from rewrite.lowering import Executable
    from rewrite.result.specialize import Specialization
    from rewrite.result.staleness import Watch

Key = TypeVar("Key", bound="Hashable")

STATIC = 8
"""How many lowerings for certain sizes are kept."""
DYNAMIC = 256
"""How many kinds of calls are remembered that run on a lowering for any sizes."""


@dataclass
class Plan:
    """How one kind of call runs.

    Attributes:
        special: the program.
        run: the lowering.
        writes: what :func:`execute` has to store of the outputs.
        static: whether ``run`` was compiled for the sizes of the call.
        frozen: whether ``run`` holds the values of weights.
        arranged: whether ``run`` takes arranged weights.
        differentiate: whether gradients pass through.
        lowered: how ``run`` was made, None where it runs operator by operator for want of a lowering.
        kept: whether it stays, however many others there are.
        used: when it was last used, in calls.
    """

    special: Specialization
    run: Executable
    writes: tuple[Mutation, ...]
    static: bool = False
    frozen: bool = False
    arranged: bool = False
    differentiate: bool = False
    lowered: Lowered | None = None
    kept: bool = False
    used: int = 0


@dataclass(frozen=True)
class Weights:
    """The tensors that the executables of one program take, as the graph has them and as the lowering wants them."""

    plain: tuple[Tensor, ...]
    arranged: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that belongs to one state of the weights. A call uses one snapshot from beginning to end."""

    watch: Watch
    weights: dict[Specialization, Weights]
    plans: dict[tuple[Hashable, bool, int], Plan]


def execute(plan: Plan, weights: Weights, flat: list[Any]) -> Any:
    """Run a call and store the state that it writes; the user's result."""
    outputs = compute(plan, weights, flat)
    signature = plan.special.graph.signature
    if plan.writes:
        _write(plan, weights, flat, outputs[signature.outputs :])
        outputs = outputs[: signature.outputs]
    return result_of(plan.special, outputs)


def compute(plan: Plan, weights: Weights, flat: list[Any]) -> Sequence[Any]:
    """The flat outputs of a call, values of state that are to be stored last."""
    if plan.differentiate:
        return plan.run(flat, weights.plain)
    with torch.no_grad():
        return plan.run(flat, weights.arranged if plan.arranged else weights.plain)


def result_of(special: Specialization, outputs: Sequence[Any]) -> Any:
    """What the user gets for the flat outputs of a program."""
    spec = special.graph.signature.out_spec
    return outputs[0] if spec.is_leaf() else compat.tree_unflatten(outputs, spec)


def _write(plan: Plan, weights: Weights, flat: list[Any], values: Sequence[Any]) -> None:
    for mutation, value in zip(plan.writes, values, strict=True):
        if mutation.kind == "input":
            flat[plan.special.inputs.index(mutation.target)].copy_(value)
        else:
            with torch.no_grad():
                weights.plain[plan.special.names.index(mutation.target)].copy_(value)


def remember(plans: dict[Key, Plan], key: Key, plan: Plan) -> None:
    """Add a plan; of those of its kind that need not be kept, the one unused for longest goes if there are too many."""
    plans[key] = plan
    kind = [other for other, known in plans.items() if known.static == plan.static and not known.kept]
    if len(kind) > (STATIC if plan.static else DYNAMIC):
        del plans[min(kind, key=lambda other: plans[other].used)]
