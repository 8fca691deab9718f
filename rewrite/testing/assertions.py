"""``assert_rule``: everything that a rule promises, tried on one model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from rewrite.driver import Driver
from rewrite.graph import Graph, is_random
from rewrite.pipeline import Step, rules_of
from rewrite.rule import Fidelity
from rewrite.testing.agreement import disagreement, rebatched
from rewrite.testing.exact import difference_modulo
from rewrite.testing.gradients import gradient_difference
from rewrite.testing.reference import Snapshot, own_dtype
from rewrite.testing.result import Result, counted, told
from rewrite.trace import capture
from rewrite.trace.capture import Capture
from rewrite.verify import MatchVerifier
from rewrite.verify.sizes import batch_symbols


def apply(graph: Graph, rule: Step) -> Result:
    """Run a rule or pass over a graph, in place, with every match verified.

    Raises:
        AssertionError: a match was rejected, the graph is broken, or a second run finds more.
    """
    before = graph.copy()
    record = Driver(graph, MatchVerifier()).run([rule])[0]
    if record.rejections:
        rejected = record.rejections[0]
        raise AssertionError(told(rule, f"the match at '{rejected.node}' was rejected: {rejected.reason}", record))
    graph.check()
    again = Driver(graph, MatchVerifier()).run([rule])[0]
    if again.commits:
        text = f"a second run finds {len(again.commits)} more, the first at '{again.commits[0].node}'"
        raise AssertionError(told(rule, text, again))
    return Result(graph, record, before)


def assert_rule(
    rule: Step,
    model: nn.Module,
    inputs: Sequence[Any] | Tensor,
    *,
    matches: int | None = None,
    refuses: str | None = None,
    training: bool = False,
    gradients: bool | None = None,
    polynomial: bool = False,
    opaque: Collection[str] = (),
    batches: Sequence[int] = (0, 1, 5),
) -> Result:
    """Run a rule or pass over a model and try everything that it promises.

    - The model is captured, every match is verified and none is rejected; the graph stays well formed; a second run
      finds nothing; a free batch stays free; the model keeps its tensors, values, flags and modes.
    - The rewritten program agrees with the *model itself* in float64 and in the model's own dtypes, element by element
      within bounds that follow from rounding alone (:func:`~rewrite.testing.agreement.disagreement`), for the given
      inputs and, where the batch is free, for every size of ``batches``.
    - The gradients of inputs and parameters through the rewritten graph, before folding, agree in float64.
    - With ``polynomial`` the graphs before and after are equal modulo primes, without any tolerance
      (:mod:`rewrite.testing.exact`).

    Rules that are not exact are compared in nothing but structure, shapes and dtypes.

    Args:
        rule: a rule or a pass.
        model: in evaluation mode, or with ``training`` in training mode, for rules that hold there.
        inputs: positional arguments of the call; one tensor stands for itself.
        matches: how many rewrites there are; None for any number.
        refuses: a part of a reason: nothing is rewritten, and some refusal gives this reason.
        training: capture the model as it trains.
        gradients: whether gradients are compared; None for wherever they can agree: not where a rule reads the values
            of weights, or brings constants in their place.
        polynomial: whether the model is a rational function of weights and inputs, and compared as such.
        opaque: elementwise operators that the rule knows nothing of, which ``polynomial`` then allows: ``{"relu"}``.
        batches: batch sizes to run the rewritten graph with.

    Returns:
        What was done, for further assertions.

    Raises:
        AssertionError: something of this does not hold; the message says what, and shows the rewrites.
    """
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    snapshot = Snapshot.of(model)
    captured = capture(model, args, training=training)
    free = batch_symbols(captured.graph)
    result = apply(captured.graph, rule)
    record = result.record
    if batch_symbols(captured.graph) != free:
        text = "the batch was free and no longer is: the replacement, or what the rule compared, fixes its size"
        raise AssertionError(told(rule, text, record))
    changes = snapshot.changes(model)
    if changes:
        raise AssertionError(told(rule, f"the user's model was changed: {'; '.join(changes)}", record))
    counted(rule, record, matches, refuses)
    flat = list(captured.flat_inputs)
    fidelity = max((each.fidelity for each in rules_of(rule)), key=list(Fidelity).index)
    rounds_weights = any(each.rounds_weights for each in rules_of(rule))
    if record.commits and fidelity.exact and not any(map(is_random, result.before.nodes)):
        for text, given in _calls(captured, model, result.before, flat, batches):
            failure = disagreement(model, result.before, result.graph, given, fidelity, rounds_weights)
            if failure:
                raise AssertionError(told(rule, f"the program differs from the model ({text}): {failure}", record))
        if _differentiable(rule, result) if gradients is None else gradients:
            failure = gradient_difference(model, result.before, result.graph, flat)
            if failure:
                raise AssertionError(told(rule, failure, record))
        if polynomial:
            failure = difference_modulo(result.before, result.graph, flat, opaque)
            if failure:
                raise AssertionError(told(rule, failure, record))
    return result


def _calls(
    captured: Capture, model: nn.Module, graph: Graph, flat: list[Any], batches: Sequence[int]
) -> list[tuple[str, list[Any]]]:
    """The inputs to compare with, and how messages name them; without batches that the model itself does not take."""
    calls = [("the given inputs", flat)]
    for size in batches if captured.batch is not None else ():
        given = rebatched(graph, flat, size)
        if size == 1 and not captured.one_row:
            continue
        try:
            own_dtype(model, graph, given)
        except Exception:
            continue
        calls.append((f"batch {size}", given))
    return calls


def _differentiable(rule: Step, result: Result) -> bool:
    brings = result.graph.weights.keys() - result.before.weights.keys()
    return not brings and not any(each.reads_values for each in rules_of(rule))
