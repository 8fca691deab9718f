"""Making plans for calls: programs lowered, with weights frozen as long as they do not change."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewrite import compat
from rewrite.distance import farthest
from rewrite.events import emit
from rewrite.graph import is_random
from rewrite.lowered import Chosen, Lowered, kernels_of
from rewrite.lowering import run_eagerly
from rewrite.result.modes import neutral
from rewrite.result.plans import Plan, Weights
from rewrite.result.precision import recorded_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewrite.lowering import Executable, Lowering
    from rewrite.result.specialize import Specialization


class Lowerings:
    """What a result's programs run on.

    Args:
        lowering: runs graphs; None runs them operator by operator.

    Attributes:
        live: whether weights are arguments of what is lowered from now on.
        announced: whether the next change of the weights was asked for, and not found to have happened.
    """

    def __init__(self, lowering: Lowering | None):
        self.lowering = lowering
        self.live = False
        self.announced = False

    def plan(
        self, special: Specialization, weights: Weights, flat: list[Any], *, differentiate: bool, compiles: bool = True
    ) -> Plan:
        """How a kind of call runs, lowered for one of them.

        Args:
            special: the program.
            weights: its weights.
            flat: the flat inputs of the call.
            differentiate: whether gradients are asked for, which run operator by operator.
            compiles: whether it may be lowered; else it runs on what is lowered already, or operator by operator.
        """
        lowering = self.lowering
        if differentiate or lowering is None:
            return Plan(special, *special.eager, differentiate=differentiate)
        writes = special.graph.signature.mutations
        known = special.lowered.get(lowering.name)
        if known is not None:
            run, lowered = known
            return Plan(special, run, writes, arranged=True, lowered=lowered)
        if not compiles:
            return Plan(special, *special.eager)
        frozen = lowering.freezes and not self.live
        if special.needs_full and not frozen and compat.is_any_autocast():
            return Plan(special, *special.eager)
        ready, special.ready = special.ready, None
        tensors = weights.plain if frozen else weights.arranged
        try:
            with neutral(autocast=True):
                started = time.perf_counter()
                if ready is not None and frozen and ready.takes(lowering.name, flat):
                    run, spent = ready.run, ready.seconds
                else:
                    named = dict(zip(special.names, tensors, strict=True))
                    run = lowering.compile(special.graph, named, flat, frozen)
                    spent = time.perf_counter() - started
            special.program.time["lowering"] = special.program.time.get("lowering", 0.0) + spent
            sizes = [list(value.shape) for value in flat if isinstance(value, Tensor)]
            emit("lowered", f"{lowering.name} compiled for {sizes} in {spent:.2f} s", lowering=lowering.name,
                 sizes=sizes, seconds=spent, frozen=frozen)  # fmt: skip
            choice = run.choice if isinstance(run, Chosen) else None
            away = _distance(special, run, flat, tensors) if lowering.static and compat.is_any_autocast() else None
            lowered = Lowered(lowering.name, tuple(map(tuple, sizes)), spent, frozen, choice, away,
                              kernels_of(run))  # fmt: skip
        except Exception as error:  # the compiler is not ours, and the program runs without it
            self.lowering = None
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"{lowering.name} cannot compile the model, which runs operator by operator from now on: {first}",
                RuntimeWarning,
                stacklevel=6,
            )
            return Plan(special, *special.eager)
        if not lowering.static:
            special.lowered[lowering.name] = run, lowered
        return Plan(special, run, writes, lowering.static, frozen, arranged=True, lowered=lowered)

    def arranged(self, special: Specialization, plain: tuple[Tensor, ...]) -> Weights:
        """The weights of a program as its executables take them."""
        if not self.live or self.lowering is None:
            return Weights(plain, plain)
        named = self.lowering.arrange(special.graph, dict(zip(special.names, plain, strict=True)))
        return Weights(plain, tuple(named[name] for name in special.names))

    def weights_changed(self, plans: Iterable[Plan]) -> None:
        """Keep weights as arguments from now on, if they changed behind a frozen plan and nobody asked for it."""
        if not self.announced and any(plan.frozen for plan in plans):
            self.live = True


def _distance(special: Specialization, run: Executable, flat: list[Any], weights: tuple[Tensor, ...]) -> float | None:
    """How far an executable's results under autocast are from those of the program without; None for random ones."""
    graph = special.graph
    if any(is_random(node) for node in graph.nodes):
        return None
    try:
        with neutral(autocast=True):
            found = run(flat, weights)
        with neutral():
            inputs = recorded_inputs(graph, flat, special.conversion.dtype_of)
            return farthest(found, run_eagerly(graph, special.names)(inputs, weights))
    except Exception as error:  # memory may be short, and the program runs without this figure
        emit("distance-unknown", f"what autocast costs cannot be told: {error}")
        return None
