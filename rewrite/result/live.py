"""What a transformed module runs on: a program over the weights that the model holds at the moment of each call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.alone import alone
from rewrite.errors import InputError, RewriteError
from rewrite.result import call, recording
from rewrite.result.mirror import find
from rewrite.result.modes import neutral
from rewrite.result.plans import Plan, Weights, execute, remember
from rewrite.result.reading import holder
from rewrite.result.specialize import Misfit, Specialization

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch.fx import GraphModule

    from rewrite.lowering import Lowering


MODES = {True: "training", False: "evaluation"}
"""What ``module.training`` is called."""


class Live:
    """The state of a transformed module.

    Args:
        source: the model, whose parameters are trained.
        special: its program.
        lowering: runs graphs; None runs them operator by operator.
    """

    def __init__(self, source: nn.Module, special: Specialization, lowering: Lowering | None):
        self.source = source
        self.special = special
        self.lowering = lowering
        self._links = [(each._modules, key, child) for each in source.modules() for key, child in each._modules.items()]
        self._modes = [(each, each.training) for each in source.modules()]
        self._holders = {name: holder(source, name) for name in special.names}
        self._fixed = _fold(special)
        self._plans: dict[Hashable, Plan] = {}
        self._lock = alone

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call.

        Raises:
            InputError: the program is not for calls of this kind.
            RewriteError: the weights do not fit the program, or modules were replaced or are in another mode.
        """
        flat, structure = call.flatten(args, kwargs)
        if compat.is_recording():
            with compat.unrecorded():
                special, weights = self._fitting(flat, structure)
            return recording.record(special, weights, flat)
        plan, weights = self._plan(flat, structure)
        return execute(plan, Weights(weights, weights), flat)

    def exported(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, GraphModule]:
        """The program for a call, as a module over the model's own tensors."""
        with compat.unrecorded():
            special, weights = self._fitting(*call.flatten(args, kwargs))
            return special, special.differentiable.to_module(dict(zip(special.names, weights, strict=True)))

    def module(self) -> GraphModule:
        """The program over the model's own parameters and buffers."""
        return self.special.graph.to_module(dict(zip(self.special.names, self._weights(), strict=True)))

    def _weights(self) -> tuple[Tensor, ...]:
        """The weights that the program takes, as the model holds them now."""
        for held, key, module in self._links:
            if held.get(key) is not module:
                raise RewriteError(f"module '{key}' was replaced after the model was transformed; transform it again")
        for module, training in self._modes:
            if module.training != training:
                raise RewriteError(
                    f"a {type(module).__name__} of the model was transformed in {MODES[training]} mode and is in "
                    f"{MODES[not training]} mode, which is another program; call train({training}) on the model, or "
                    "transform it again"
                )
        changed = self.special.program.other_decision(self._present)
        if changed:
            raise RewriteError(
                f"forward decides on the value of '{changed}', which was another one when the model was transformed; "
                "transform it again"
            )
        weights: list[Any] = [
            self._fixed[name] if held is None else held.get(name.rpartition(".")[2])
            for name, held in self._holders.items()
        ]
        missing = [name for name, tensor in zip(self._holders, weights, strict=True) if tensor is None]
        if missing:
            raise RewriteError(f"the model has no '{missing[0]}' any more, which its program reads; transform it again")
        return tuple(weights)

    def _present(self, name: str) -> Tensor | None:
        return find(self.source, name)

    def _plan(self, flat: list[Any], structure: call.Tree) -> tuple[Plan, tuple[Tensor, ...]]:
        """How a call runs, and on what."""
        weights = self._weights()
        key = call.key(flat, structure, torch.is_grad_enabled()), tuple((w.dtype, w.device, w.shape) for w in weights)
        plan = self._plans.get(key)
        if plan is None:
            with self._lock:
                special, weights = self._fitting(flat, structure)
                plan = self._lower(special, flat, weights)
                remember(self._plans, key, plan)
        return plan, weights

    def _fitting(self, flat: list[Any], structure: call.Tree) -> tuple[Specialization, tuple[Tensor, ...]]:
        """The program for a call in the present dtypes and on the present device, and its weights."""
        with self._lock:
            special = self._fit(self._weights())
            if not special.accepts(flat, structure, compat.is_any_autocast()):
                sizes = ", ".join(str(list(value.shape)) for value in flat if isinstance(value, Tensor))
                raise InputError(
                    f"the model was not transformed for inputs like these ({sizes}): only the batch may differ from "
                    "the example; call transform with such an example"
                )
            return special, self._weights()

    def _fit(self, weights: tuple[Tensor, ...]) -> Specialization:
        try:
            fitted = self.special.fit(dict(zip(self.special.names, weights, strict=True)))
        except Misfit as misfit:
            raise RewriteError(f"the weights do not fit the transformed program: {misfit}; transform again") from None
        if fitted is not self.special:
            self.special, self._fixed = fitted, _fold(fitted)
            self._plans.clear()
        return fitted

    def _lower(self, special: Specialization, flat: list[Any], weights: tuple[Tensor, ...]) -> Plan:
        if self.lowering is None:
            return Plan(special, *special.eager, differentiate=True)
        graph = special.differentiable
        run = self.lowering.compile(graph, dict(zip(special.names, weights, strict=True)), flat, frozen=False)
        return Plan(special, run, graph.signature.mutations, static=self.lowering.static, differentiate=True)


def _fold(special: Specialization) -> dict[str, Tensor]:
    """The values that depend on no weight."""
    with neutral():
        return {**special.constants, **special.graph.program.evaluate(special.constants)}
