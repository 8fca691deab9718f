"""The last check of a run: the rewritten program against the model, which is not changed by the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewrite.errors import VerificationError
from rewrite.events import emit, verdict_data
from rewrite.lowering import written_weights
from rewrite.trace import isolated, replica
from rewrite.verify.model import verify_model
from rewrite.verify.outputs import NOTHING_FINITE

if TYPE_CHECKING:
    from torch import nn

    from rewrite.graph import Graph
    from rewrite.verdict import Verdict


def compare_whole(
    model: nn.Module, original: Graph, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Verdict:
    """Compare a program with the model on a call.

    Args:
        model: the model, of which a copy is called.
        original: the graph as it was captured, with its weights.
        graph: the rewritten one.
        args, kwargs: the call.
    """
    # calls may write state (a step counter, running statistics): each side works on a copy of it
    program = graph.to_module({name: graph.weights[name].clone() for name in written_weights(graph)})
    folded = [tensor for name, tensor in graph.weights.items() if name not in original.weights]
    with isolated(model), replica(model) as source:
        verdict = verify_model(source, program, original, args, kwargs, weights=folded)
    name = type(model).__name__
    verb = "cannot be compared" if verdict.reason == NOTHING_FINITE else "does NOT agree"
    text = "agrees with the source" if verdict.accepted else f"{verb} with the source: {verdict.reason}"
    emit("verified", f"{name}: the whole model {text}", model=name, **verdict_data(verdict))
    return verdict


def verify_whole(
    model: nn.Module, original: Graph, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Verdict:
    """The verdict of :func:`compare_whole`.

    Raises:
        VerificationError: the program is not equal to the model within the bound, or there is nothing to compare.
    """
    verdict = compare_whole(model, original, graph, args, kwargs)
    if verdict.reason == NOTHING_FINITE:
        raise VerificationError(
            f"{type(model).__name__} cannot be compared with what it was rewritten to: {NOTHING_FINITE}"
        )
    if not verdict.accepted:
        raise VerificationError(
            f"the rewritten {type(model).__name__} is not equal to the model, which is unchanged: {verdict.reason}; "
            "find the rewrite with rewrite.bisect, or leave its rule out with exclude="
        )
    return verdict
