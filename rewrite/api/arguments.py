"""What users write for arguments, made into what the framework takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import codegen
import passes
from passes.fold_constants import FoldConstants
from rewrite.errors import InputError, PipelineError
from rewrite.names import nearest
from rewrite.pipeline import Pass, Pipeline, Step, rules_of
from rewrite.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rewrite.lowering import Lowering


def pipeline_of(given: Any, default: Pipeline | None = None) -> Pipeline:
    """The pipeline that a user means: text, a pipeline, a step, or several; None for the default one.

    Raises:
        PipelineError: an unknown pass or option, or something else.
    """
    if given is None:
        return passes.default_pipeline() if default is None else default
    if isinstance(given, str):
        return passes.registry().parse(given)
    if isinstance(given, Pipeline):
        return given
    steps = (given,) if isinstance(given, (Pass, Rule)) else given
    try:
        steps = tuple(steps)
    except TypeError:
        raise PipelineError(f"{given!r} is not a pipeline; pass its text, a Pipeline, passes or rules") from None
    for step in steps:
        if not isinstance(step, (Pass, Rule)):
            hint = " (write its name with parentheses)" if isinstance(step, type) else ""
            raise PipelineError(f"{step!r} is neither a pass nor a rule{hint}; pass instances")
    return Pipeline(steps)


def exclusions_of(given: str | Iterable[str], model: nn.Module, pipeline: Pipeline) -> tuple[str, ...]:
    """Names of steps, rules and module paths; a pass that runs as part of another stands for its rules."""
    names = (given,) if isinstance(given, str) else tuple(given)
    known = {name for step in pipeline for name in (step.name, *(rule.name for rule in rules_of(step)))}
    registered = passes.registry().steps
    known.update(registered)
    paths = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    found: dict[str, None] = {}
    for name in names:
        if name not in known and name not in paths:
            raise InputError(
                f"exclude={name!r} is no pass, rule or module of this model{nearest(name, {*known, *paths})}"
            )
        found[name] = None
        if name in registered and all(step.name != name for step in pipeline):
            found.update((rule.name, None) for rule in rules_of(registered[name]()))
        # a module that is registered twice is captured under either path
        found.update((path, None) for path, module in paths.items() if module is paths.get(name))
    return tuple(found)


def call_of(example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as positional and keyword arguments; only a tuple is several arguments."""
    kwargs = dict(example_kwargs or {})
    if example_inputs is None:
        return (), kwargs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), kwargs


def lowering_of(name: str | None) -> Lowering:
    """A lowering by name; None for the best one that works here.

    Raises:
        InputError: an unknown name.
    """
    if name is None:
        return codegen.default_lowering()
    found = codegen.LOWERINGS.get(name)
    if found is None:
        raise InputError(f"lower={name!r} is unknown{nearest(str(name), codegen.LOWERINGS)}")
    return found()


def freezing_rule(step: Step) -> Rule | None:
    """The first rule of a step whose result holds for the present values of the weights only."""
    return next((rule for rule in rules_of(step) if rule.reads_values or isinstance(rule, FoldConstants)), None)


def live_pipeline() -> Pipeline:
    """The default steps that keep weights live, for training."""
    return Pipeline(tuple(step for step in passes.default_pipeline() if freezing_rule(step) is None))


def require_live(pipeline: Pipeline) -> None:
    """Check that a pipeline can run where weights are trained.

    Raises:
        PipelineError: a rule holds for the present values of the weights only.
    """
    for step in pipeline:
        rule = freezing_rule(step)
        if rule is not None:
            raise PipelineError(
                f"'{rule.name}' holds for the present weights only, and transform keeps them trainable; leave it out, "
                "or use optimize"
            )
