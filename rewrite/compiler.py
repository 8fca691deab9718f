"""From a model and an example call to a verified program: capture, rewrite, verify, report."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rewrite.errors import PlanError
from rewrite.events import emit
from rewrite.rewriting import Rewriting
from rewrite.trace import capture, check_model, unwrap
from rewrite.verify import verify_whole

if TYPE_CHECKING:
    from torch import nn

    from rewrite.recipe import Recipe
    from rewrite.result import Program
    from rewrite.trace import Capture


@dataclass(frozen=True)
class Compiler:
    """Captures, rewrites and verifies one model for one example call; called again for every new static signature.

    The first program has to be that of the recipe's plan, if it has one. Later ones, for which the plan is not, are
    searched.

    Args:
        model: the module, wrapped or not.
        recipe: what is done to its graph.
        training: capture training behaviour and gradients; else the model has to be in evaluation mode.

    Raises:
        InputError, CaptureError: the model cannot be compiled, whatever the example.
    """

    model: nn.Module
    recipe: Recipe
    training: bool = False
    _begun: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", unwrap(self.model))
        check_model(self.model, self.training)

    def compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """The verified program for this example call.

        Raises:
            InputError, CaptureError: the call, or what the model does with it.
            PlanError: the plan is not for the first program.
            VerificationError: the program as a whole is not equal to the model.
        """
        captured = capture(self.model, args, kwargs, training=self.training)
        name = type(captured.model).__name__
        emit("captured", f"{name}: captured in {captured.seconds:.2f} s", model=name, seconds=captured.seconds,
             batch=captured.batch, notes=list(captured.notes))  # fmt: skip
        rewriting = self._rewriting(captured)
        verdict = None
        if self.recipe.verify != "off":
            verdict = verify_whole(captured.model, captured.graph, rewriting.graph, args, kwargs)
        self._begun.set()
        return rewriting.program(verdict)

    def _rewriting(self, captured: Capture) -> Rewriting:
        try:
            return Rewriting.of(captured, self.recipe)
        except PlanError as error:
            if not self._begun.is_set():
                raise
            emit("plan-left", f"this program is searched: {error}")
        searched = Rewriting.of(captured, replace(self.recipe, plan=None))
        return searched.noting("the plan is not for this program, which was searched with the plan's pipeline")
