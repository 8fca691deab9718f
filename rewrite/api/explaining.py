"""``explain``: why rules do not match in a model, and what would make them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from rewrite.alone import alone
from rewrite.api.arguments import call_of, exclusions_of, pipeline_of, registered_steps, step_of
from rewrite.driver import Refused, Rejection, StepRecord
from rewrite.errors import InputError
from rewrite.flops import Sizes
from rewrite.gain import total
from rewrite.numerics import forbidden
from rewrite.pipeline import ChoicePass, Pipeline, rules_of, step_text
from rewrite.recipe import Recipe, Verify
from rewrite.report import Explanation, explanation_of, record_of
from rewrite.result import Alone, source_of
from rewrite.trace import bound, capture, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rewrite.graph import Graph
    from rewrite.numerics import Numerics
    from rewrite.pipeline import Pass, Step
    from rewrite.rule import Rule

T = TypeVar("T", bound="Refused | Rejection")


def explain(
    model: nn.Module,
    example_inputs: Any = None,
    rule: str | Rule | Pass | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    pipeline: Any = None,
    exclude: str | Iterable[str] = (),
    numerics: Numerics = "default",
    verify: Verify = "default",
) -> Explanation:
    """Say where rules began to match in a model and did not: the culprit, the line, the reason and the remedy.

    Rewrites are made on a copy of the captured program, so that what is left is what cannot be done; the model is not
    changed, nothing is compiled, and only single matches are verified. The model may be in training mode, as a whole or
    in part: its mode is often the reason.

    Args:
        model: a module; of an optimized or transformed one the model that it was made of is explained. A result that
            stands alone, from ``load(path)`` or ``release=True``, has none.
        example_inputs: the argument, or a tuple of the positional arguments (a list is one argument).
        rule: the name of a rule or a pass, or one of these itself: only this one is explained, at the nearer of where
            it stands in the captured program and where it stands after the rest of the pipeline. Default: every exact
            rule there is that is no choice, the pipeline's first.
        example_kwargs: keyword arguments of the example call.
        method: the method to explain instead of ``forward``.
        pipeline: passes to run, as in :func:`optimize`; then rules that are not among them are left out.
        exclude: names of passes and rules that do not run, and paths of modules that are left as they are.
        numerics: what of the rules runs, as in :func:`optimize`.
        verify: how much each match is checked; ``"off"`` is quicker and takes every rule at its word.

    Returns:
        An explanation: text by ``print``, data by ``to_dict()``, and its findings by iterating, sorted by the estimated
        gain.

    Raises:
        InputError: an argument does not fit; for an unknown rule the message names the nearest one.
        CaptureError: the model cannot be captured as a functional graph.
        PipelineError: an unknown pass or option.
    """
    model = bound(_source(unwrap(model)), method)
    steps = pipeline_of(pipeline)
    asked = None if rule is None else step_of(rule, steps)
    if asked is None and pipeline is None:
        steps += Pipeline(_others(steps))
    recipe = Recipe(steps, exclusions_of(exclude, model, steps), verify, numerics=numerics)
    training = any(module.training for module in model.modules())
    captured = capture(model, *call_of(example_inputs, example_kwargs), training=training)
    name, whole = type(captured.model).__name__, total(captured.graph)
    per_sample = Sizes(captured.graph).per_sample
    ran = steps.steps if asked is None else (asked,)
    with alone:
        records = recipe.apply(captured.graph) if asked is None else [_record(captured.graph, asked, recipe)]
    kept_out = forbidden(numerics, ran)
    return explanation_of(name, ran, records, whole, captured.notes, recipe.exclude, per_sample, kept_out)


def _source(model: nn.Module) -> nn.Module:
    """The model to explain.

    Raises:
        InputError: a result that stands alone, and has none.
    """
    source = source_of(model)
    if isinstance(source, Alone):
        raise InputError(
            f"this result of {type(source).__name__} stands alone, loaded without its model or released from it, and "
            "has no code to explain; explain the model that it was made of"
        )
    return source


def _others(pipeline: Pipeline) -> tuple[Step, ...]:
    """The exact registered steps with rules that a pipeline does not have; what is a choice is not missed."""
    known = {rule.name for step in pipeline for rule in rules_of(step)}
    found: list[Step] = []
    for step in registered_steps():
        rules = rules_of(step)
        eligible = all(rule.fidelity.exact and not rule.choice for rule in rules)
        if eligible and not known.issuperset(rule.name for rule in rules):
            found.append(step)
    return tuple(found)


def _record(graph: Graph, step: Step, recipe: Recipe) -> StepRecord:
    """What a step finds, at the nearer of the beginning and its place in a recipe; without one, the recipe's end."""
    early, late = graph.copy(), graph
    alone = Recipe(Pipeline((step,)), recipe.exclude, recipe.verify, numerics=recipe.numerics)
    names = tuple(rule.name for rule in rules_of(step))
    [first] = alone.apply(early)
    second = _in_place(late, step, recipe)
    if second is None:
        Recipe(recipe.pipeline, (*recipe.exclude, *names), recipe.verify).apply(late)
        [second] = alone.apply(late)
    return StepRecord(
        step_text(step),
        max(second.commits, first.commits, key=len),
        _nearer(_without(first.refused, second), _without(second.refused, first)),
        _nearer(_without(first.rejections, second), _without(second.rejections, first)),
    )


def _in_place(graph: Graph, step: Step, recipe: Recipe) -> StepRecord | None:
    """What the rules of a step find where a recipe runs them, the last time; None where it does not run them all.

    Elsewhere other rules would take their places.
    """
    rules = set(rules_of(step))
    places = [i for i, other in enumerate(recipe.pipeline)
              if rules.issubset(rules_of(other)) and not isinstance(other, ChoicePass)]  # fmt: skip
    if not places:
        return None
    records = recipe.apply(graph)
    names = {rule.name for rule in rules}
    found = [record_of(records[i], names) for i in places]
    return replace(found[-1], step=step_text(step), commits=[commit for record in found for commit in record.commits])


def _without(blocked: Iterable[T], other: StepRecord) -> list[T]:
    """What was not rewritten in the other run."""
    rewritten = {name for commit in other.commits for name in commit.nodes}
    return [item for item in blocked if item.node not in rewritten]


def _nearer(first: Iterable[T], second: Iterable[T]) -> list[T]:
    """Of what two runs say of one node, what came further; the second where they came equally far."""
    found: dict[tuple[str, str], T] = {}
    for item in (*second, *first):
        known = found.setdefault((item.rule, item.node), item)
        if len(item.matched) > len(known.matched):
            found[item.rule, item.node] = item
    return list(found.values())
