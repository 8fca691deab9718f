"""What users write for arguments, made into what the framework takes."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

import codegen
import codegen.native
import passes
from passes.fold_constants import FoldConstants
from rewrite.approximation import Approximation
from rewrite.cache import default_cache
from rewrite.errors import InputError, PipelineError, PlanError
from rewrite.names import nearest
from rewrite.pipeline import Pass, Pipeline, Step, rules_of
from rewrite.plan import REMEDY, Plan
from rewrite.progress import Progress
from rewrite.recipe import Recipe
from rewrite.result import OptimizedModule, TransformedModule
from rewrite.rule import Rule
from rewrite.select import BUDGET, Tuning
from rewrite.target import Measurements, Target
from rewrite.trace import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rewrite.lowering import Lowering


def pipeline_of(given: Any, default: Pipeline | None = None) -> Pipeline:
    """The pipeline that a user means: text, a pipeline, a step, or several of these; None for the default one.

    Args:
        given: what the user wrote.
        default: what None and the name ``default`` in a text stand for; by default the default pipeline.

    Raises:
        PipelineError: an unknown pass or option, or something else.
    """
    if given is None:
        return passes.default_pipeline() if default is None else default
    if isinstance(given, str):
        return _parsed(given, default)
    if isinstance(given, Pipeline):
        return _without_approximations(given)
    parts = (given,) if isinstance(given, (Pass, Rule)) else given
    try:
        parts = tuple(parts)
    except TypeError:
        raise PipelineError(f"{given!r} is not a pipeline; pass its text, a Pipeline, passes or rules") from None
    several = [pipeline_of(part, default) if isinstance(part, (str, Pipeline)) else (part,) for part in parts]
    return _without_approximations(Pipeline(tuple(step for steps in several for step in steps)))


def _parsed(text: str, default: Pipeline | None) -> Pipeline:
    """The pipeline of a text.

    Raises:
        PipelineError: an unknown pass or option, or an approximation.
    """
    try:
        return passes.registry(default).parse(text)
    except PipelineError:
        for name in passes.approximations().steps:
            if re.search(rf"(^|,)\s*{re.escape(name)}\s*(\{{|,|$)", text):
                raise _needs_data(name) from None
        raise


def _without_approximations(pipeline: Pipeline) -> Pipeline:
    """The pipeline.

    Raises:
        PipelineError: it has an approximation.
    """
    for step in pipeline:
        for rule in rules_of(step):
            if isinstance(rule, Approximation):
                raise _needs_data(rule.name)
    return pipeline


def _needs_data(name: str) -> PipelineError:
    return PipelineError(
        f"'{name}' changes the function and has to be fitted to data; use rewrite.approximate(model, batches, "
        f"'{name}', max_error=...), and optimize what it returns"
    )


def registered_steps() -> list[Step]:
    """Each registered step with its default options; those that have none are left out."""
    registry = passes.registry()
    found: list[Step] = []
    for name in registry.steps:
        with contextlib.suppress(PipelineError):
            found.extend(registry.parse(name))
    return found


def step_of(given: Any, pipeline: Pipeline) -> Step:
    """The rule or pass that a user means: itself, or the name of one, in the pipeline or registered, or of a part.

    Raises:
        InputError: an unknown name, or something else.
    """
    if isinstance(given, (Pass, Rule)):
        return given
    if not isinstance(given, str):
        raise InputError(f"rule={given!r} is neither a name nor a rule or pass; pass a name, or an instance")
    known: dict[str, Step] = {}
    for step in (*pipeline, *registered_steps()):
        for part in (step, *rules_of(step)):
            known.setdefault(part.name, part)
    if given not in known:
        raise InputError(f"rule={given!r} is no rule or pass{nearest(given, known)}")
    return known[given]


def exclusions_of(given: str | Iterable[str], model: nn.Module, pipeline: Pipeline) -> tuple[str, ...]:
    """What a user excludes from the rewriting of a model: steps, rules, and modules under all their paths.

    Raises:
        InputError: a name is none of these.
    """
    found, others = step_exclusions(given, pipeline)
    paths = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    for name in others:
        if name not in paths:
            known = {*_step_names(pipeline), *paths}
            raise InputError(f"exclude={name!r} is no pass, rule or module of this model{nearest(name, known)}")
        # a module that is registered twice is captured under either path
        found += [path for path, module in paths.items() if module is paths[name]]
    return tuple(dict.fromkeys(found))


def step_exclusions(given: str | Iterable[str], pipeline: Pipeline) -> tuple[list[str], list[str]]:
    """The names of steps and rules that a user excludes, and the other names.

    A pass that runs as part of another stands for its rules.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    known = _step_names(pipeline)
    registered = passes.registry().steps
    found = [name for name in names if name in known]
    for name in list(found):
        if name in registered and all(step.name != name for step in pipeline):
            found += [rule.name for rule in rules_of(registered[name]())]
    return found, [name for name in names if name not in known]


def _step_names(pipeline: Pipeline) -> set[str]:
    return {name for step in pipeline for name in (step.name, *(rule.name for rule in rules_of(step)))} | set(
        passes.registry().steps
    )


def recipe_of(
    model: nn.Module,
    pipeline: Any,
    exclude: str | Iterable[str],
    plan: Plan | str | None = None,
    *,
    default: Pipeline | None = None,
    **settings: Any,
) -> Recipe:
    """What is to be done: a pipeline and exclusions, or a plan, which has its own.

    Raises:
        InputError: a plan beside what it has already.
        PipelineError: an unknown pass or option.
        PlanError: the plan cannot be read, or names a pass or a module that is not known.
    """
    if plan is None:
        steps = pipeline_of(pipeline, default)
        return Recipe(steps, exclusions_of(exclude, model, steps), **settings)
    given = {"pipeline": pipeline, "exclude": exclude or None, "fuel": settings.get("fuel")}
    if settings.get("numerics", "default") != "default":
        given["numerics"] = settings["numerics"]
    for name, value in given.items():
        if value is not None:
            raise InputError(f"plan= and {name}= are given, and a plan decides every rewrite itself; leave out {name}=")
    plan = _plan_of(plan)
    try:
        steps = passes.registry().parse(plan.pipeline)
    except PipelineError as error:
        raise PlanError(
            f"the plan's pipeline '{plan.pipeline}' cannot be run here: {error}; install the plug-in that the step "
            "comes from, for only registered steps can be named by a plan"
        ) from error
    _check_exclusions(plan, model, steps)
    return Recipe(steps, plan.exclude, plan=plan, **settings)


def _check_exclusions(plan: Plan, model: nn.Module, pipeline: Pipeline) -> None:
    """Check that what a plan excludes is known.

    Raises:
        PlanError: a name is no pass, rule or module of the model.
    """
    rules = {rule.name for step in registered_steps() for rule in rules_of(step)}
    paths = {path for path, _ in model.named_modules(remove_duplicate=False) if path}
    known = {*_step_names(pipeline), *rules, *paths}
    for name in plan.exclude:
        if name not in known:
            raise PlanError(f"the plan excludes {name!r}, which is no pass, rule or module of this model; {REMEDY}")


def _plan_of(given: Any) -> Plan:
    if isinstance(given, Plan):
        return given
    if isinstance(given, str):
        return Plan.from_json(given)
    raise InputError(f"plan={given!r} is no plan; pass a Plan, or the text that plan.to_json() gave")


def call_of(example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as positional and keyword arguments; only a tuple is several arguments."""
    kwargs = dict(example_kwargs or {})
    if example_inputs is None:
        return (), kwargs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), kwargs


def lowering_of(
    name: str | Lowering | None, traced: bool = False, target: Target | None = None, numerics: str = "default"
) -> Lowering:
    """A lowering by name; None for the default, the best one that needs no measurement.

    Args:
        name: what the user wrote; a lowering of the user's own is taken as it is.
        traced: whether it has to compile inside ``torch.compile``.
        target: measures which kernels are faster; None where nothing is measured.
        numerics: as for :func:`rewrite.optimize`.

    Raises:
        InputError: an unknown name, one that is not offered there, or what it needs is not installed.
    """
    if name is None:
        return codegen.default_lowering(target, numerics == "elementwise")
    if not isinstance(name, str) and all(
        hasattr(name, needed) for needed in ("name", "compile", "arrange", "rehearse")
    ):
        return name
    found = codegen.LOWERINGS.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(f"lower={name!r} is unknown{nearest(str(name), codegen.LOWERINGS)}")
    if traced and name not in codegen.TRACED:
        raise InputError(
            f"lower={name!r} is not offered inside torch.compile, where sizes are symbolic and weights are arguments; "
            f"pass {' or '.join(map(repr, sorted(codegen.TRACED)))}, or use rewrite.optimize"
        )
    measuring = {"inductor": codegen.Inductor, "fastest": codegen.Fastest}.get(str(name))
    return found() if measuring is None else measuring(target, numerics == "elementwise")


TUNE = "TORCH_REWRITE_TUNE"
"""The environment variable that stands for ``tune=`` where it is not given."""


def target_of(tune: str | None, cached: bool = True) -> Target | None:
    """What algorithms, layouts and kernels are measured on; None where nothing is measured.

    Measurements are kept between processes if ``cached``.

    Raises:
        InputError: an unknown ``tune``.
    """
    if _tune(tune) == "off":
        return None
    cache = default_cache() if cached else None
    directory = None if cache is None else cache.directory / "measurements"
    return Target(measurements=Measurements(directory), kernels=codegen.native.identity())


def tuning_of(tune: str | None, budget: float | None, lowering: Lowering, target: Target | None) -> Tuning | None:
    """How algorithms and layouts are chosen; None where nothing is measured.

    Raises:
        InputError: an unknown ``tune``, or a budget that is no number of seconds.
    """
    name = _tune(tune)
    seconds: Any = budget
    if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 0):
        raise InputError(f"budget={budget!r} is no number of seconds; pass one that is not negative, or None")
    if target is None:
        return None
    if seconds is not None:
        target.allowance = min(target.allowance, seconds)
    return Tuning(lowering, target, "full" if name == "full" else "quick", budget, Progress("measuring operators"))


def _tune(tune: str | None) -> str:
    """How thoroughly is measured, by what the user wrote or set in the environment."""
    name = "tune" if tune is not None else TUNE
    tune = os.environ.get(TUNE, "quick") if tune is None else tune
    known = ("off", *BUDGET)
    if tune not in known:
        raise InputError(f"{name}={tune!r} is not one of {', '.join(map(repr, known))}{nearest(str(tune), known)}")
    return tune


def freezing_rule(step: Step) -> Rule | None:
    """The first rule of a step whose result holds for the present values of the weights only."""
    return next((rule for rule in rules_of(step) if rule.reads_values or isinstance(rule, FoldConstants)), None)


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


def require_original(model: nn.Module, function: str) -> None:
    """Check that a model is not what ``optimize``, ``transform`` or ``load`` made.

    Raises:
        InputError: it is.
    """
    if isinstance(unwrap(model), (OptimizedModule, TransformedModule)):
        raise InputError(f"{function} needs the model itself, not a rewritten one; pass the module that it was made of")
