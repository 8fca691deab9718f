"""``offers``: what choices could be made in a model, and what both sides cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

import passes
from rewrite.alone import alone
from rewrite.api.arguments import call_of, exclusions_of, pipeline_of, registered_steps, require_original
from rewrite.flops import Sizes
from rewrite.numerics import forbidden, note
from rewrite.offering import offers_in
from rewrite.pipeline import ChoicePass, Pipeline, rules_of, step_text
from rewrite.recipe import Recipe, Verify
from rewrite.report import Offered, offered_of
from rewrite.trace import bound, capture, unwrap
from rewrite.verify import MatchVerifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rewrite.numerics import Numerics
    from rewrite.pipeline import Step


def offers(
    model: nn.Module,
    example_inputs: Any = None,
    rules: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    pipeline: Any = None,
    exclude: str | Iterable[str] = (),
    numerics: Numerics = "default",
    verify: Verify = "default",
) -> Offered:
    """List what rules could put in the place of parts of a model, verified, with the cost of both sides.

    Choices are better in one place and worse in another, so no pipeline makes them unless it names them. The rewrites
    of the pipeline are made on a copy of the captured program, and the rules asked over what it leaves; none of what
    they offer is made, the model is not changed, and nothing is compiled.

    Args:
        model: a module in evaluation mode.
        example_inputs: the argument, or a tuple of the positional arguments (a list is one argument).
        rules: what is asked, as pipelines are written: text such as ``"space-to-batch, merge-support"``, rules or
            passes. Default: every choice there is, plug-ins included. Rules that are no choices can be asked too.
        example_kwargs: keyword arguments of the example call.
        method: the method to look at instead of ``forward``.
        pipeline: passes that run before, as in :func:`optimize`; default: the default pipeline, which simplifies.
        exclude: names of passes and rules that do not run and are not asked, and paths of modules that are left alone.
        numerics: what of the rules runs and is asked, as in :func:`optimize`.
        verify: how much each match is checked; ``"off"`` is quicker and takes every rule at its word.

    Returns:
        A table by ``print``, data by ``to_dict()``, the alternatives by iterating, the largest estimated saving first,
        and by ``refusals()`` why rules offer nothing where they began to match.

    Raises:
        InputError: an argument does not fit; the message names the remedy.
        CaptureError: the model cannot be captured as a functional graph.
        PipelineError: an unknown pass or option.
    """
    require_original(model, "offers")
    model = bound(unwrap(model), method)
    before, asked = pipeline_of(pipeline), _choices() if rules is None else pipeline_of(rules)
    kept_out = forbidden(numerics, before + asked)
    excluded = (*exclusions_of(exclude, model, before + asked), *kept_out)
    recipe = Recipe(before, excluded, verify, numerics=numerics)
    steps = [step for step in asked if step.name not in recipe.exclude]
    wanted = {step_text(rule): (rule, step) for step in steps for rule in rules_of(step)
              if rule.name not in recipe.exclude}  # fmt: skip
    captured = capture(model, *call_of(example_inputs, example_kwargs))
    graph = captured.graph
    verifier = None if verify == "off" else MatchVerifier(verify)
    with alone:
        recipe.apply(graph)
        graph.eliminate_dead()  # what nobody needs reads values that a match would hide
        found = offers_in(graph, (rule for rule, _ in wanted.values()), verifier, recipe.exclude)
    first = "default" if pipeline is None else str(before)
    pipelines = {text: _pipeline(first, step, before) for text, (_, step) in wanted.items()}
    return offered_of(
        type(captured.model).__name__, str(before), found, Sizes(graph), pipelines, (*captured.notes, *note(kept_out))
    )


def _choices() -> Pipeline:
    """The choices among the registered steps, with their own options."""
    steps = (step for step in registered_steps() if not isinstance(step, ChoicePass))
    return Pipeline(tuple(rule for step in steps for rule in rules_of(step) if rule.choice))


def _pipeline(first: str, step: Step, before: Pipeline) -> str:
    """What makes the offers of a step, as code: behind what ran, and before the folding of what it computes."""
    steps = passes.registry().steps
    known = {other.name for other in (step, *before) if steps.get(other.name) is type(other)}
    if step.name in known and known.issuperset(other.name for other in before):
        return _quoted(", ".join(filter(None, (first, step_text(step), "fold-constants"))))
    head = [_quoted(first)] if known.issuperset(other.name for other in before) else [repr(other) for other in before]
    return f"[{', '.join([*head, repr(step), _quoted('fold-constants')])}]"


def _quoted(text: str) -> str:
    return repr(text) if '"' in text else f'"{text}"'
