"""What is left to be folded: algebra on weights that a pipeline makes and does not evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.fold_constants import FoldConstants
from rewrite.pipeline import rules_of
from rewrite.provenance import origin
from rewrite.rule import Match
from rewrite.weights import is_algebra

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.fx import Node

    from rewrite.driver import StepRecord
    from rewrite.graph import Graph
    from rewrite.recipe import Recipe


def unfolded_note(graph: Graph, recipe: Recipe, records: Sequence[StepRecord]) -> tuple[str, ...]:
    """What a user should know of algebra that runs at each call, a sentence for a report where there is any.

    Only what rules made behind the last ``fold-constants`` counts, and what that would fold: what it leaves, it leaves
    for a reason. Nothing is said where it was left out by name, or was not reached.

    Args:
        graph: the rewritten graph, whose weights are constant.
        recipe: what was done.
        records: what each step did.
    """
    if FoldConstants.name in recipe.exclude or recipe.fuel is not None:
        return ()
    rule, since = FoldConstants(), 0
    for i, step in enumerate(recipe.pipeline, start=1):
        for found in rules_of(step):
            if isinstance(found, FoldConstants):
                rule, since = found, i
    later = {commit.number for record in records[since:] for commit in record.commits}
    if not later:
        return ()
    folded = (found.anchor for found in rule.find(graph, graph.nodes) if isinstance(found, Match))
    number = sum((made := origin(node)) is not None and made.match in later for node in _algebra(folded))
    if not number:
        return ()
    runs = "1 operator on weights runs" if number == 1 else f"{number} operators on weights run"
    return (f"{runs} at each call; end the pipeline with {FoldConstants.name}",)


def _algebra(values: Iterable[Node]) -> set[Node]:
    """The algebra that rules made among constant values and what they are computed from."""
    seen: set[Node] = set()
    stack = list(values)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return {node for node in seen if is_algebra(node)}
