"""From a model and an example call to a verified program: capture, rewrite, verify, report."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rewrite.cache.keys import identity_or_none
from rewrite.errors import PlanError
from rewrite.events import emit
from rewrite.graph import is_random
from rewrite.result.modes import uncollected
from rewrite.result.reading import constants_of
from rewrite.revival import revive
from rewrite.rewriting import Rewriting
from rewrite.trace import capture, check_model, method_of, unwrap
from rewrite.trying import dropped, is_chosen, tried
from rewrite.verify import compare_whole, sample_of, verify_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rewrite.cache import ProgramCache
    from rewrite.cache.store import Entry
    from rewrite.driver import StepRecord
    from rewrite.graph import Graph
    from rewrite.recipe import Recipe, Settings
    from rewrite.result import Program
    from rewrite.trace import Capture
    from rewrite.verdict import Verdict

_RESTORED = "restored from the cache: the matches were verified when it was made, the whole model again"


@dataclass(frozen=True)
class Compiler:
    """Captures, rewrites and verifies one model for one example call; called again for every new static signature.

    The first program has to be that of the recipe's plan, if it has one. Later ones, for which the plan is not, are
    searched.

    Args:
        model: the module, wrapped or not.
        recipe: what is done to its graph.
        training: capture training behaviour and gradients; else the model has to be in evaluation mode.
        cache: keeps programs between processes; None for none. Not for training.
        remark: what else the user should know of a rewritten graph, a sentence each.

    Raises:
        InputError, CaptureError: the model cannot be compiled, whatever the example.
    """

    model: nn.Module
    recipe: Recipe
    training: bool = False
    cache: ProgramCache | None = None
    remark: Callable[[Graph, Recipe, Sequence[StepRecord]], Sequence[str]] | None = None
    _begun: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", unwrap(self.model))
        check_model(self.model, self.training)

    def compile(self, args: tuple[Any, ...], kwargs: dict[str, Any], tuned: bool = True) -> Program:
        """The verified program for this example call.

        Args:
            args, kwargs: the example.
            tuned: choose algorithms and layouts by measurement, as the recipe says.

        Raises:
            InputError, CaptureError: the call, or what the model does with it.
            PlanError: the plan is not for the first program.
            VerificationError: the program as a whole is not equal to the model.
        """
        if not tuned and self.recipe.tuning is not None:
            untuned = replace(self, recipe=replace(self.recipe, tuning=None))
            object.__setattr__(untuned, "_begun", self._begun)
            return untuned.compile(args, kwargs)
        started = time.perf_counter()
        entry = None if self.cache is None else self.cache.entry(self.model, self.recipe, args, kwargs)
        program = None if entry is None else self._restore(entry, args, kwargs, started)
        if program is None:
            program = self._make(args, kwargs, self._identity(entry))
            if entry is not None:
                entry.store(self.model, program)
        return program

    def _restore(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any], started: float) -> Program | None:
        """The program of a cache entry, checked against the model; None where there is none that passes."""
        stored = entry.read()
        if stored is None:
            return None
        try:
            with uncollected():
                program = revive(
                    self.model, stored, args, kwargs, settings=self._settings(), phase="cache", note=_RESTORED,
                    whole=self.recipe.verify != "off",
                )  # fmt: skip
        except Exception as error:  # an entry may be of anything; then the model is captured, and tells what is wrong
            entry.miss(f"{type(error).__name__}: {error}")
            return None
        spent = program.time["cache"] = time.perf_counter() - started - program.time["verification"]
        emit("cache-hit", f"{entry.name}: restored in {spent:.2f} s", model=entry.name, key=entry.key.digest,
             seconds=spent)  # fmt: skip
        return program

    def _identity(self, entry: Entry | None) -> str | None:
        """The identity of the model, as it is before it is captured: until the program is saved it may change."""
        if self.training:  # nothing is saved
            return None
        return identity_or_none(self.model)[0] if entry is None else entry.key.identity

    def _settings(self) -> Settings:
        return self.recipe.settings(method_of(self.model))

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any], identity: str | None) -> Program:
        captured = capture(self.model, args, kwargs, training=self.training)
        rewriting = tried(self._rewriting(captured))
        verdict = None
        if self.recipe.verify != "off":
            rewriting, verdict = _verified(rewriting, args, kwargs)
        self._begun.set()
        if self.remark is not None:
            for note in self.remark(rewriting.graph, self.recipe, rewriting.records):
                rewriting = rewriting.noting(note)
        program = rewriting.program(verdict)
        if self.training:  # the parameters are the model's, so there is nothing to save
            return program
        original = captured.graph
        sample = sample_of(original, captured.flat_inputs)
        original.weights = constants_of(captured.model, original)
        if any(is_random(node) for node in original.nodes):  # which no comparison of values can check
            identity = None
        return replace(program, captured=_slim(original), sample=sample, settings=self._settings(), identity=identity)

    def _rewriting(self, captured: Capture) -> Rewriting:
        try:
            return Rewriting.of(captured, self.recipe)
        except PlanError as error:
            if not self._begun.is_set():
                raise
            emit("plan-left", f"this program is searched: {error}")
        searched = Rewriting.of(captured, replace(self.recipe, plan=None))
        return searched.noting("the plan is not for this program, which was searched with the plan's pipeline")


def _verified(rewriting: Rewriting, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Rewriting, Verdict]:
    """A rewriting that is equal to the model, without what was selected where it is not with that.

    Raises:
        VerificationError: it is not equal without either.
    """
    captured = rewriting.captured
    if is_chosen(rewriting):
        verdict = compare_whole(captured.model, captured.graph, rewriting.graph, args, kwargs)
        if verdict.accepted:
            return rewriting, verdict
        rewriting = dropped(rewriting, verdict.reason)
    return rewriting, verify_whole(captured.model, captured.graph, rewriting.graph, args, kwargs)


def _slim(graph: Graph) -> Graph:
    """The graph with no more in the metadata of its nodes than what files keep of it."""
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in node.meta}
    return graph
