"""A mean or sum of what a layer gives, taken of what it reads instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from passes import affine, reductions
from passes.hoist_pooling.averages import averaged, coefficients, convolved
from passes.hoist_pooling.plan import Plan, plan
from rewrite.ops import Convolution, Linear, Reduction, arguments, reduction, value, view
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


class _OverLayer(Rule, abstract=True):
    """The common part: a pool whose input is a layer."""

    fidelity = Fidelity.ELEMENTWISE
    starts = "a mean or sum of what a layer gives"
    keeps = ()
    shared: ClassVar[bool]

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each mean or sum of a layer among ``dirty``."""
        for node in dirty:
            pool = reduction(node)
            layer = view(pool.input) if pool is not None else None
            if pool is not None and pool.kind in ("mean", "sum") and isinstance(layer, (Convolution, Linear)):
                found = self._look(graph, pool, layer)
                if found is not None:
                    yield found

    def _look(self, graph: Graph, pool: Reduction, layer: affine.Layer) -> Match | Miss | None:
        made = plan(graph, layer, pool.kind, pool.dims)
        readers = [reader for reader in layer.node.users if reader not in pool.nodes]
        if made is None or bool(readers) is not self.shared:
            return None if made is None else self._of_other_kind(pool, made, readers)
        nodes = (layer.node, *pool.nodes)
        if isinstance(made, Refusal):
            return Miss(self.name, pool.node, made, nodes)
        outputs = (layer.node, pool.node) if self.shared else (pool.node,)
        return Match(self, nodes, outputs, {"pool": pool, "plan": made})

    def _of_other_kind(self, pool: Reduction, made: Plan | Refusal, readers: list[Node]) -> Miss | None:
        """What is said where the layer is read elsewhere, or is not, against what the rule asks for."""
        return None

    def rewrite(self, match: Match, g: Builder) -> Node | tuple[Node, ...]:
        """The layer over averages; the one that others read stays as it is."""
        made: Plan = match.plan
        result = _linear(g, made, match.pool) if isinstance(made.layer, Linear) else _convolution(g, made, match.pool)
        result = reductions.finished(g, reductions.reduced(g, match.pool.kind, result, made.rest), match.pool)
        return (g.keep(made.layer.node), result) if self.shared else result


@dataclass(frozen=True)
class PoolBeforeLayer(_OverLayer):
    r"""Take a mean or sum of a layer's outputs before the layer, where nothing else reads them.

    .. math:: \frac{1}{HW} \sum_{uv} \Big(b_o + \sum_{cij} W_{ocij}\, x_{c,\,su+di-p,\,sv+dj-p}\Big)
        = b_o + \sum_{ch} \tilde W_{och}\, \bar x_{ch}, \qquad
        \sum_o (W x + b)_o = (1^\top W) x + 1^\top b

    Over an image :math:`\bar x` are the averages over runs of positions that the same taps meet: the interior as a
    whole, or one average for each phase of the stride, and the rows and columns near the border, which fewer taps meet.
    :math:`\tilde W` are sums of those taps. Nothing is subtracted, so nothing cancels. A transposed convolution is
    pooled likewise, cropped taps left out.

    Each rewrite lowers the arithmetic, counted from shapes; those that would not are refused. A result that is not
    finite stays so: every element that the layer reads has a coefficient of its own or is averaged with others.
    """

    shared = False

    def _of_other_kind(self, pool: Reduction, made: Plan | Refusal, readers: list[Node]) -> Miss | None:
        if isinstance(made, Refusal):
            return None
        refusal = Refusal(f"{called(made.layer.node)} is also read elsewhere, so the layer stays", readers[0],
                          f"name '{HoistSharedPooling.name}' in the pipeline, which moves the pool alone")  # fmt: skip
        return Miss(self.name, pool.node, refusal, (made.layer.node, *pool.nodes))


@dataclass(frozen=True)
class HoistSharedPooling(_OverLayer):
    """Take the pool of a layer's outputs before the layer, although the layer stays for other readers.

    A squeeze-and-excitation or channel-attention gate on a convolution (Hu et al., 2018; Wang et al., ECA-Net, 2020) is
    then known before the convolution runs, so that a kernel can apply it as it writes. The pool reads the layer's input
    instead of its output. That saves nothing by itself, so it is a choice.
    """

    choice = True
    shared = True


def _linear(g: Builder, made: Plan, pool: Reduction) -> Node:
    layer = made.layer
    assert isinstance(layer, Linear)
    x = reductions.reduced(g, "mean", layer.input, made.tokens)
    weight, bias = layer.weight, layer.bias
    if made.channels:
        weight = reductions.reduced(g, pool.kind, weight, [1 if layer.stored_transposed else 0])
        bias = None if bias is None else reductions.reduced(g, pool.kind, bias, [0])
    return _counted(g, affine.with_weights(g, layer, x, weight, bias), pool, made.tokens)


def _convolution(g: Builder, made: Plan, pool: Reduction) -> Node:
    conv = made.layer
    assert isinstance(conv, Convolution)
    x = averaged(g, conv.input, made.extents)
    kernel = coefficients(g, conv, made.extents) if made.extents else conv.weight
    bias, groups = conv.bias, conv.groups
    if made.channels:
        kernel = _rows(g, conv, kernel, pool.kind, plain=bool(made.extents) or not conv.transposed)
        bias, groups = None if bias is None else reductions.reduced(g, pool.kind, bias, [0]), 1
    kernel = affine.cast(g, kernel, value(conv.weight).dtype)
    if bias is not None and conv.bias is not None:
        bias = affine.cast(g, bias, value(conv.bias).dtype)
    if made.extents:
        return _counted(g, convolved(g, conv, x, kernel, bias, made.extents, groups), pool, tuple(made.extents))
    changed = {**arguments(conv.node), "input": x, "weight": kernel, "bias": bias, "groups": groups}
    return g(conv.node.target, *changed.values())


def _rows(g: Builder, conv: Convolution, kernel: Node, kind: str, plain: bool) -> Node:
    """A kernel with one output channel, the sum or mean of all: ``[1, C, *taps]``, ``[C, 1, *taps]`` if not plain."""
    if not plain:
        total = g(aten.sum.dim_IntList, kernel, [1], True)
    else:
        shape = [int(n) for n in value(kernel).shape]
        grouped = g(aten.reshape.default, kernel, [conv.groups, shape[0] // conv.groups, *shape[1:]])
        total = g(aten.reshape.default, g(aten.sum.dim_IntList, grouped, [1]), [1, conv.in_channels, *shape[2:]])
    return total if kind == "sum" else g(aten.mul.Tensor, total, 1 / conv.out_channels)


def _counted(g: Builder, result: Node, pool: Reduction, dims: tuple[int, ...]) -> Node:
    """A mean along these dimensions, or where the pool is a sum that many times it."""
    if pool.kind == "mean" or not dims:
        return result
    sizes = [value(pool.input).shape[dim] for dim in dims]
    return g(aten.mul.Tensor, result, math.prod(int(size) for size in sizes))
