"""Merge the branches of an add-tree into one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from passes import affine
from passes.reparameterize.branches import consumer, read_tree
from passes.reparameterize.build import build
from passes.reparameterize.plan import Plan, make_plan
from rewrite.errors import PipelineError
from rewrite.ops import BatchNorm, Convolution, Linear, Negation, Product, Sum, arguments, is_tensor, value, view
from rewrite.rule import Fidelity, Match, Miss, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeBranches(Rule):
    r"""Merge convolutions, identities, norms and average pools over one input that are added up into one convolution.

    .. math:: \sum_b s_b\,\mathrm{conv}_b(x) = \mathrm{conv}(x),\quad
        W[o, c, (\ell - \ell_b + d_b i) / d] \mathrel{+}= s_b\,W_b[o, c, i],\quad \ell = \max_b \ell_b

    with :math:`\ell_b` the padding before the input, so that :math:`d_b i - \ell_b` is the offset at which a tap reads.
    As in RepVGG (Ding et al. 2021), RepLKNet (Ding et al. 2022) and UniRepLKNet (Ding et al. 2024), but for any such
    tree of one to three dimensions, with even, rectangular, strided, dilated and grouped kernels.

    Attributes:
        max_kernel: no merged kernel spans more elements than this in any dimension; None for no limit.
    """

    fidelity = Fidelity.ELEMENTWISE
    radius: ClassVar[int] = 8
    starts = "a sum of layers, norms, average pools or identities over one input"

    max_kernel: int | None = None

    def __post_init__(self) -> None:
        limit: Any = self.max_kernel
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise PipelineError(f"max_kernel is {limit!r}; give a positive integer, or None for no limit")

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """The trees that the given nodes belong to, the largest first."""
        for node in dirty:
            miss = self._complex(graph, node)
            for root in _roots(node):
                found = self._look(graph, root)
                if isinstance(found, Match):
                    yield found
                miss = miss or (found if isinstance(found, Miss) else None)
            if miss is not None:
                yield miss

    def _look(self, graph: Graph, root: Node) -> Match | Miss | None:
        if not value(root).dtype.is_floating_point or graph.is_constant(root):
            return None
        miss: Miss | None = None
        for axis in _channel_axes(root):
            tree = read_tree(graph, root, axis)
            found = make_plan(graph, tree, self.max_kernel)
            if isinstance(found, Plan):
                return Match(self, found.nodes, (root,), {"plan": found})
            if found is not None and miss is None:
                miss = Miss(self.name, root, found.refusal, found.nodes)
        return miss

    def _complex(self, graph: Graph, node: Node) -> Miss | None:
        """The miss of two complex layers over one input, whose sum no view describes."""
        if node.target is not aten.add.Tensor or not value(node).dtype.is_complex:
            return None
        given = arguments(node)
        first, second = view(given["self"]), view(given["other"])
        if not isinstance(first, (Convolution, Linear)) or not isinstance(second, (Convolution, Linear)):
            return None
        refusal = affine.layer_refusal(graph, first) if first.input is second.input else None
        return None if refusal is None else Miss(self.name, node, refusal, (first.node, second.node, node))

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The merged layers, and the sum with the terms that are kept."""
        return build(g, match.plan)


def _channel_axes(root: Node) -> list[int]:
    """Where the channels may be: dimension 1 as convolutions have it, or the last one as linear layers have it."""
    shape: list[Any] = list(value(root).shape)
    axes = [1] if 3 <= len(shape) <= 5 else []
    axes += [len(shape) - 1] if len(shape) > 1 else []
    return [axis for axis in axes if isinstance(shape[axis], int)]


def _roots(node: Node) -> list[Node]:
    """The nodes of the add-tree around a node from which it can be read, outermost first."""
    roots: list[Node] = []
    current: Node | None = node
    while current is not None:
        if is_tensor(current) and isinstance(view(current), (Sum, Negation, Product, BatchNorm)):
            roots.append(current)
        current = consumer(current)
    return roots[::-1]
