"""Merge parallel two-layer branches over one input that are added up into one wide branch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from passes import affine
from passes.costs import groups, sharing_refusal
from passes.obstruction import is_layer
from passes.stacking import Geometry, stacked, summed
from passes.sums import is_inner, plus
from rewrite.between import between
from rewrite.graph import is_random
from rewrite.ops import (
    Activation,
    Convolution,
    Linear,
    Sum,
    Term,
    activation,
    same_type,
    view,
    view_as,
)
from rewrite.provenance import called, function_name, module_path
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten

_PRELUS = (aten.prelu.default, aten._prelu_kernel.default)


@dataclass(frozen=True)
class MergeWide(Rule):
    r"""Merge branches of two layers with an activation between, over one input and added up, into one wide branch.

    .. math:: \sum_i c_i (W_{2,i} f(W_{1,i} x + b_{1,i}) + b_{2,i})
        = [c_1 W_{2,1}, \dots, c_L W_{2,L}]\, f([W_{1,1}; \dots; W_{1,L}] x + [b_{1,1}; \dots; b_{1,L}])
        + \sum_i c_i b_{2,i}

    It is what becomes of a deep residual network that is made shallow (Bermeitinger et al. 2023), and of aggregated
    paths (Xie et al. 2017). Floating-point operations stay the same but for the additions that vanish, and each branch
    after the first takes away two layers, its activation and an addition. Linear layers, and convolutions of any
    window, as long as those of all branches agree; the hidden units may differ in number.

    The function between acts on single elements. A norm, a gate or a pooled attention over the hidden units would mix
    those of several branches; dropout in training would draw other numbers.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a sum of branches of two layers each over one input"

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each add-tree that the nodes among ``dirty`` end."""
        for node in dirty:
            found = view_as(node, Sum)
            if found is not None and not graph.is_constant(node) and not is_inner(node):
                result = self._look(graph, found)
                if result is not None:
                    yield result

    def _look(self, graph: Graph, root: Sum) -> Match | Miss | None:
        terms, inner = root.flatten()
        count = Counter(term.node for term in terms)
        # a branch that is added twice would be computed twice
        candidates = [_candidate(graph, term, root.node) for term in terms if count[term.node] == 1]
        seen = [found for found in candidates if found is not None]
        sources: dict[Node, list[_Branch | _Obstacle]] = {}
        for found in seen:
            sources.setdefault(found.source, []).append(found)
        miss: Miss | None = None
        for over in sources.values():
            families: dict[Any, list[_Branch]] = {}
            for found in over:
                if isinstance(found, _Branch):
                    families.setdefault(found.key, []).append(found)
            for family in families.values():
                if len(family) > 1:
                    nodes = (*(node for branch in family for node in branch.nodes), *inner)
                    return Match(self, tuple(sorted(set(nodes))), (root.node,), {"branches": family, "terms": terms})
            if len(over) > 1 and miss is None:
                nodes = (*(node for found in over for node in found.nodes), *inner)
                miss = Miss(self.name, root.node, _difference(over), nodes)
        return miss

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The wide branch and the terms that are left."""
        branches: list[_Branch] = match.branches
        hidden = stacked(g, [branch.first for branch in branches], branches[0].source)
        for function in branches[0].functions:
            hidden = function.on(g, hidden)
        total = summed(g, [branch.second for branch in branches], [b.term.coefficient for b in branches], hidden)
        merged = {branch.term.node for branch in branches}
        for term in match.terms:
            if term.node not in merged:
                total = plus(g, total, term)
        return total


@dataclass(frozen=True)
class _Branch:
    """``second(f(first(source)))``, none of whose inner values is read elsewhere; ``nodes`` in graph order."""

    term: Term
    source: Node
    first: affine.Layer
    functions: tuple[Activation, ...]
    second: affine.Layer
    nodes: tuple[Node, ...]

    @property
    def key(self) -> Any:
        """What branches have in common that can be merged."""
        return tuple(f.function for f in self.functions), Geometry.of(self.first), Geometry.of(self.second)


@dataclass(frozen=True)
class _Obstacle:
    """Two layers with something between that look like a branch, and why they are none."""

    source: Node
    nodes: tuple[Node, ...]
    refusal: Refusal


def _candidate(graph: Graph, term: Term, root: Node) -> _Branch | _Obstacle | None:
    second = view(term.node)
    if not isinstance(second, (Convolution, Linear)) or not same_type(second.node, root):
        return None
    found = between(graph, second.input, is_layer)
    first = None if found is None else view(found[0])
    if found is None or not found[1] or not isinstance(first, (Convolution, Linear)):
        return None
    nodes = (first.node, *found[1], second.node)
    functions = [activation(node) for node in found[1]]
    refusal = (
        _function_refusal(found[1])
        or affine.layer_refusal(graph, first)
        or affine.layer_refusal(graph, second)
        or next((_group_refusal(layer) for layer in (first, second) if groups(layer) > 1), None)
        or sharing_refusal(first)
        or sharing_refusal(second)
        or _shared_refusal(nodes, root)
    )
    if refusal is not None:
        return _Obstacle(first.input, nodes, refusal)
    known = tuple(function for function in functions if function is not None)
    return _Branch(term, first.input, first, known, second, nodes)


def _function_refusal(nodes: Sequence[Node]) -> Refusal | None:
    culprit = next((node for node in nodes if activation(node) is None), None)
    if culprit is None:
        return None
    name, path = function_name(culprit), module_path(culprit)
    remedy = f"take {called(culprit)} out from between the layers"
    if not any(map(activation, nodes)):
        remedy = f"put an activation, the same in all branches, in the place of {called(culprit)}"
    if path and any(map(is_random, (culprit, *culprit.all_input_nodes))):
        return Refusal(f"{name} draws random numbers for the hidden units", culprit, f"call eval() on '{path}'")
    if culprit.target in _PRELUS:
        return Refusal(f"the slope of {name} is a weight, and each branch may have another", culprit,
                       "use an activation without weights, the same in all branches")  # fmt: skip
    is_one = "is not known as a function" if _is_pointwise(culprit) else "is no function"
    return Refusal(f"{name} stands between the layers of a branch, which {is_one} of single elements", culprit, remedy)


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _group_refusal(layer: affine.Layer) -> Refusal:
    return Refusal("a layer of a branch has groups", layer.node, f"build {called(layer.node)} with groups=1")


def _shared_refusal(nodes: Sequence[Node], root: Node) -> Refusal | None:
    for node, reader in zip(nodes, (*nodes[1:], None), strict=True):
        others = [user for user in node.users if reader is not None and user is not reader]
        if others or (reader is None and len(node.users) > 1):
            return read_elsewhere(node, others[0] if others else sorted(node.users)[-1], root)
    return None


def _difference(over: Sequence[_Branch | _Obstacle]) -> Refusal:
    """Why no two branches over one input are alike."""
    for found in over:
        if isinstance(found, _Obstacle):
            return found.refusal
    first, second = over[:2]
    assert isinstance(first, _Branch)
    assert isinstance(second, _Branch)
    names = [" and ".join(function_name(f.node) for f in branch.functions) for branch in (first, second)]
    if first.key[0] != second.key[0]:
        culprit = second.functions[0].node
        return Refusal(f"the branches have different activations, {names[0]} and {names[1]}", culprit,
                       f"give both {names[0]} with the same parameters")  # fmt: skip
    layers = [(a, b) for a, b in ((first.first, second.first), (first.second, second.second))
              if Geometry.of(a) != Geometry.of(b)]  # fmt: skip
    a, b = layers[0]
    return Refusal("the layers of the branches have different kernels, strides or padding", b.node,
                   f"give {called(b.node)} those of {called(a.node)}")  # fmt: skip
