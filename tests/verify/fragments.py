"""Fragments of whole programs, for tests of what is derived from a fragment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewrite.fragment import Fragment, extract
from rewrite.rule import Fidelity, Match, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.graph import Graph


class Nothing(Rule):
    fidelity = Fidelity.ELEMENTWISE


def whole(graph: Graph) -> Fragment:
    """All operators of a graph as one fragment."""
    return extract(Match(Nothing(), tuple(graph.calls()), tuple(graph.outputs)))


def environment(fragment: Fragment, values: dict[Node, Any]) -> dict[Node, Any]:
    """The value of every node of a fragment, in the dtypes of the given values."""
    from rewrite import evaluate

    env = {stand_in: values[node] for node, stand_in in fragment.inputs.items()}
    evaluate.run(fragment.fx.nodes, env)
    return env
