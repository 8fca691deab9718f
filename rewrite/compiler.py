"""From a model and an example call to a verified program: capture, rewrite, verify, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewrite.cost import count
from rewrite.errors import VerificationError
from rewrite.events import emit, verdict_data
from rewrite.lowering import written_weights
from rewrite.report import Report
from rewrite.result import Program
from rewrite.trace import capture, check_model, isolated, replica, unwrap
from rewrite.verify import verify_model
from rewrite.versions import versions

if TYPE_CHECKING:
    from torch import nn

    from rewrite.graph import Graph
    from rewrite.recipe import Recipe
    from rewrite.trace import Capture
    from rewrite.verdict import Verdict


@dataclass(frozen=True)
class Compiler:
    """Captures, rewrites and verifies one model for one example call; called again for every new static signature.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", unwrap(self.model))
        check_model(self.model, self.training)

    def compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """The verified program for this example call.

        Raises:
            InputError, CaptureError: the call, or what the model does with it.
            VerificationError: the program as a whole is not equal to the model.
        """
        captured = capture(self.model, args, kwargs, training=self.training)
        name = type(captured.model).__name__
        emit("captured", f"{name}: captured in {captured.seconds:.2f} s", model=name, seconds=captured.seconds,
             batch=captured.batch, notes=list(captured.notes))  # fmt: skip
        original, graph = captured.graph.copy(), captured.graph
        started = time.perf_counter()
        records = self.recipe.apply(graph)
        seconds = time.perf_counter() - started
        verdict = None if self.recipe.verify == "off" else self._verify(captured, original, graph, args, kwargs)
        match_seconds = sum(record.verify_seconds for record in records)
        split = {
            "capture": captured.seconds,
            "passes": seconds - match_seconds,
            "verification": match_seconds + (verdict.seconds if verdict else 0.0),
        }
        report = Report(
            name, str(self.recipe.pipeline), records, count(original), count(graph), verdict,
            split, captured.notes, versions(),
        )  # fmt: skip
        return Program(graph, report, self.recipe.value_rules(records), captured.one_row, split)

    def _verify(
        self, captured: Capture, original: Graph, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Verdict:
        # calls may write state (a step counter, running statistics): each side works on a copy of it
        program = graph.to_module({name: graph.weights[name].clone() for name in written_weights(graph)})
        folded = [tensor for name, tensor in graph.weights.items() if name not in original.weights]
        with isolated(captured.model), replica(captured.model) as source:
            verdict = verify_model(source, program, original, args, kwargs, weights=folded)
        name = type(captured.model).__name__
        text = "agrees with the source" if verdict.accepted else f"does NOT agree with the source: {verdict.reason}"
        emit("verified", f"{name}: the whole model {text}", model=name, **verdict_data(verdict))
        if not verdict.accepted:
            raise VerificationError(
                f"the rewritten {name} is not equal to the model, which is unchanged: "
                f"{verdict.reason}; find the rewrite with fuel=, or leave its rule out with exclude="
            )
        return verdict
