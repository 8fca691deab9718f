"""Merge a branch of two layers, with no activation between them, into a layer that it is added to."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from passes import affine, compose
from passes.costs import groups, weight_bytes
from passes.pair import Pair
from passes.reparameterize.embed import embedded
from passes.reparameterize.kernels import union
from passes.stacking import times
from passes.sums import is_inner, plus
from rewrite.ops import Convolution, Linear, Product, Sum, Term, same_type, value, view, view_as
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeLowRank(Rule):
    r"""Merge two layers in a row into a layer over the same input to which their result is added.

    .. math:: W x + b + c\,(W_2 (W_1 x + b_1) + b_2) = (W + c\,W_2 W_1) x + (b + c\,W_2 b_1 + c\,b_2)

    As the adapters of LoRA (Hu et al. 2022) are merged, for linear layers and convolutions. The product by itself would
    cost more than its narrow factors; in the sum it costs nothing. Both layers and an addition vanish, with all their
    floating-point operations; the weights that stay are those of the layer, unless others read these too.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "the sum of a layer and of two layers in a row over the same input"

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
        read = [term.node for term in terms]
        miss: Miss | None = None
        for branch in (_branch(term, root.node) for term in terms if read.count(term.node) == 1):
            if branch is None:
                continue
            for term in terms:
                host = view(term.node)
                if not isinstance(host, (Convolution, Linear)) or host.input is not branch.pair.first.input:
                    continue
                nodes = (host.node, *branch.nodes, *inner)
                refusal = _refusal(graph, branch.pair, host)
                if refusal is None and read.count(host.node) == 1:
                    captures = {"host": host, "factor": term.coefficient, "branch": branch, "terms": terms}
                    return Match(self, tuple(sorted(set(nodes))), (root.node,), captures)
                miss = miss or (None if refusal is None else Miss(self.name, root.node, refusal, nodes))
        return miss

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The layer with both weights added up, and the terms that are left."""
        host, branch = match.host, match.branch
        weight, bias = branch.pair.weights(g, groups(host), len(compose.reach(host).taps))
        weight = embedded(g, weight, branch.pair.whole.taps, compose.reach(host).taps)
        own = compose.kernel(g, host, groups(host), len(compose.reach(host).taps))
        weight = g(aten.add.Tensor, times(g, own, match.factor), times(g, weight, branch.term.coefficient))
        constants = [(host.bias, match.factor), (bias, branch.term.coefficient)]
        shifts = [times(g, constant, factor) for constant, factor in constants if constant is not None]
        bias = functools.reduce(lambda a, b: g(aten.add.Tensor, a, b), shifts) if shifts else None
        total = compose.like(g, host, host.input, weight, bias, groups(host))
        for term in match.terms:
            if term.node not in (host.node, branch.nodes[-1]):
                total = plus(g, total, term)
        return total


@dataclass(frozen=True)
class _Branch:
    """Two layers in a row, perhaps times numbers, as a term of a sum; ``nodes`` ends with the term itself."""

    term: Term
    pair: Pair
    nodes: tuple[Node, ...]


def _branch(term: Term, root: Node) -> _Branch | None:
    node, coefficient = term.node, term.coefficient
    scaled: tuple[Node, ...] = ()
    while (found := view_as(node, Product)) is not None:
        data, number = (found.left, found.right) if isinstance(found.left, Node) else (found.right, found.left)
        inverse = found.divided and data is found.left
        if not isinstance(data, Node) or isinstance(number, Node) or found.divided != inverse:
            return None
        coefficient = coefficient / number if inverse else coefficient * number
        node, scaled = data, (found.node, *scaled)
    second = view(node)
    first = view(second.input) if isinstance(second, (Convolution, Linear)) else None
    if not isinstance(second, (Convolution, Linear)) or not isinstance(first, (Convolution, Linear)):
        return None
    if type(first) is not type(second) or not same_type(second.node, root) or any(map(_is_transposed, (first, second))):
        return None
    return _Branch(Term(coefficient, term.node), Pair(first, second, ()), (first.node, second.node, *scaled))


def _is_transposed(layer: affine.Layer) -> bool:
    return isinstance(layer, Convolution) and layer.transposed


def _refusal(graph: Graph, pair: Pair, host: affine.Layer) -> Refusal | None:
    """Why the layers of a pair cannot be a part of another layer."""
    layers = (host, pair.first, pair.second)
    refusal = next(filter(None, (affine.layer_refusal(graph, layer) for layer in layers)), None)
    refusal = refusal or pair.border_refusal()  # the layer has any padding that the two have
    if refusal is not None:
        return refusal
    mine, whole = compose.reach(host), pair.whole
    if whole.stride != mine.stride:
        return Refusal(f"the branch has the stride {whole.stride}, the layer {mine.stride}", pair.second.node,
                       "give both the same")  # fmt: skip
    sizes: list[Any] = list(value(host.input).shape[2:])
    known = [size if isinstance(size, int) else None for size in sizes]
    parts = zip(mine.taps, whole.taps, mine.stride, known, strict=False)
    if any(union((a, b), stride, size) != a for a, b, stride, size in parts):
        return Refusal("the branch reads elements that the layer does not", pair.second.node,
                       f"build {called(host.node)} with a kernel that covers both")  # fmt: skip
    if pair.groups % groups(host):
        return Refusal("the layer has groups that the branch connects", host.node,
                       f"build {called(host.node)} with groups={math.gcd(pair.groups, groups(host))}")  # fmt: skip
    if weight_bytes((host,), shared=True) > weight_bytes(layers):
        return Refusal("others read the same weights", host.node, "give the layer weights of its own")
    return None
