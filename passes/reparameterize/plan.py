"""Which terms of an add-tree are merged, and whether that is worth it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from passes.obstruction import is_layer
from passes.reparameterize.clusters import Cluster, cluster
from passes.reparameterize.forms import Hindrance
from rewrite.between import LIMIT, data_operands
from rewrite.ops import Convolution, Linear, Negation, Product, Sum, value, view
from rewrite.provenance import called, describe
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from passes.reparameterize.forms import Branch, Form, Obstacle, Shift, Tree
    from rewrite.graph import Graph
    from rewrite.ops import Term


@dataclass(frozen=True)
class Plan:
    """What an add-tree becomes: the sum of one layer for each cluster and of the terms that are kept.

    Attributes:
        clusters: at least one.
        shifts: constants that join the bias of the first cluster.
        kept: terms that stay as they are.
        nodes: the nodes that are replaced, in graph order.
    """

    clusters: tuple[Cluster, ...]
    shifts: tuple[Shift, ...]
    kept: tuple[Term, ...]
    nodes: tuple[Node, ...]


def make_plan(graph: Graph, tree: Tree, max_kernel: int | None) -> Plan | Hindrance | None:
    """The plan for a tree; why there is none, where at least two branches were seen; None where there is no such thing.

    A plan has fewer operators than the tree and costs no more multiply-accumulates.
    """
    outputs = int(value(tree.root).shape[tree.axis])
    taken, clusters, refusals = _take(tree, outputs, max_kernel)
    taken, clusters = _without_idle(tree, taken, clusters)
    if clusters:
        forms = [tree.form(i) for i in taken]
        nodes = dict.fromkeys((*tree.sums, *(node for form in forms for node in form.nodes)))
        kept = tuple(term for i, (term, _) in enumerate(tree.terms) if i not in taken)
        before = sum(node.target is not operator.getitem for node in nodes)
        after = sum(1 + part.needs_pad for part in clusters) + len(clusters) + len(kept) - 1
        if after < before:
            shifts = tuple(shift for form in forms for shift in form.shifts)
            return Plan(tuple(clusters), shifts, kept, tuple(sorted(nodes)))
    return _why_not(graph, tree, refusals)


def _take(
    tree: Tree, outputs: int, max_kernel: int | None
) -> tuple[list[int], list[Cluster], list[tuple[Node, Refusal]]]:
    """The terms whose every branch finds a cluster, as indices."""
    taken = [i for i, (_, form) in enumerate(tree.terms) if form is not None]
    reasons: list[tuple[Node, Refusal]] = []
    while True:
        branches = [branch for i in taken for branch in tree.form(i).branches]
        clusters, stranded, refusals = cluster(branches, outputs, max_kernel)
        reasons.extend(refusals)
        if not stranded:
            return taken, clusters, reasons
        taken = [i for i in taken if not any(branch in stranded for branch in tree.form(i).branches)]


def _without_idle(tree: Tree, taken: list[int], clusters: list[Cluster]) -> tuple[list[int], list[Cluster]]:
    """Leave out layers that stay alone and have nothing to absorb; where there are constants, one takes them."""
    alone = {part.branches[0]: part for part in clusters if len(part.branches) == 1}
    idle = {i: alone[form.branches[0]] for i in taken if _is_idle(form := tree.form(i)) and form.branches[0] in alone}
    constants = any(not tree.form(i).branches for i in taken)
    if constants and idle and len(idle) == len(clusters):
        del idle[min(idle)]
    return [i for i in taken if i not in idle], [part for part in clusters if part not in idle.values()]


def _is_idle(form: Form) -> bool:
    """Whether a form is one layer, at most with norms behind it, which another rule folds."""
    return len(form.branches) == 1 and not any(isinstance(view(node), (Sum, Product, Negation)) for node in form.nodes)


def _why_not(graph: Graph, tree: Tree, refusals: Sequence[tuple[Node, Refusal]]) -> Hindrance | None:
    branches = [branch for i in range(len(tree.terms)) for branch in tree.form(i).branches]
    working = [branch for branch in branches if _works(branch)]
    read = [*(branch.source for branch in branches), *(obstacle.source for obstacle in tree.obstacles)]
    obstacles = [found for found in tree.obstacles if read.count(found.source) > 1]
    layers = any(isinstance(branch.leaf, (Convolution, Linear)) for branch in working)
    if len(working) + len(obstacles) < 2 or not (layers or obstacles):
        return None
    if obstacles:
        source = obstacles[0].source
        over = [found for found in obstacles if found.source is source]
        remedies = dict.fromkeys(found.refusal.remedy for found in over)
        return _hindrance(tree, replace(obstacles[0].refusal, remedy="; ".join(remedies)), [source], over)
    if refusals:
        source, refusal = refusals[0]
        return _hindrance(tree, refusal, [source])
    return _other_inputs(graph, tree, list(dict.fromkeys(branch.source for branch in working)))


def _hindrance(tree: Tree, refusal: Refusal, sources: Sequence[Node], obstacles: Sequence[Obstacle] = ()) -> Hindrance:
    """The hindrance, with the operators of all branches that read one of the sources, and those of obstacles."""
    forms = [form for _, form in tree.terms if form is not None and form.sources.intersection(sources)]
    nodes = [node for form in forms for node in form.nodes]
    nodes += [node for obstacle in obstacles for node in obstacle.nodes]
    return Hindrance(refusal, (*nodes, *tree.sums))


def _other_inputs(graph: Graph, tree: Tree, sources: Sequence[Node]) -> Hindrance | None:
    """Branches over two inputs, where one is the other behind an operator or two; else nobody would expect a merge."""
    if len(sources) < 2:
        return None
    first, second = sources[:2]
    below = _way_down(graph, first)
    way = _way_down(graph, second)
    common = next((node for node in way if node in below), None)
    if common is None:
        return None
    above = way[: way.index(common)] or below[: below.index(common)]
    reason = f"the branches read different inputs, {describe(first)} and {describe(second)}"
    return _hindrance(tree, Refusal(reason, above[-1], f"let all of them read the value of {called(common)}"),
                      [first, second])  # fmt: skip


def _way_down(graph: Graph, node: Node) -> list[Node]:
    """The node and what it is computed from, as far as that is no layer and the way does not fork."""
    way = [node]
    while len(way) <= LIMIT and not is_layer(way[-1]) and len(operands := data_operands(graph, way[-1])) == 1:
        way.append(operands[0])
    return way


def _works(branch: Branch) -> bool:
    return branch.leaf is not None or bool(branch.factors)
