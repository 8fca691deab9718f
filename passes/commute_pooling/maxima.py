"""Activations after max pooling instead of before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes import reductions
from rewrite.flops import Sizes
from rewrite.ops import MaxPool, Reduction, activation, reduction, value, view_as
from rewrite.provenance import function_name
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import Activation

aten = torch.ops.aten

_OPERATORS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)

Pool = MaxPool | Reduction


@dataclass(frozen=True)
class MaxPoolBeforeActivation(Rule):
    r"""Apply an activation that does not decrease after a maximum over windows, or over whole dimensions.

    .. math:: \max_i f(x_i) = f(\max_i x_i)

    Each rewrite leaves the activation fewer elements. Results are equal in every value, NaN included, which both a
    maximum and these functions pass on. They are not declared bitwise: the sign of a zero may differ, and ``sigmoid``
    and ``tanh`` as computed are not quite monotone. Outside the input max pooling sees minus infinity, which no window
    takes that holds an element. CCT's tokenizer has the pattern (Hassani et al., Escaping the Big Data Paradigm with
    Compact Transformers, 2021), as has every ResNet's stem.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a maximum of an activation"
    keeps = (MaxPool, Reduction)

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each maximum of an activation among ``dirty``."""
        for node in dirty:
            pool = view_as(node, MaxPool) or reduction(node)
            act = None if pool is None else activation(pool.input)
            if pool is None or act is None or (isinstance(pool, Reduction) and pool.kind not in ("max", "min")):
                continue
            sizes = Sizes(graph)
            if sizes.elements(pool.node) >= sizes.elements(pool.input):
                continue  # as many elements afterwards
            refusal = _refusal(pool, act)
            if isinstance(pool, Reduction):
                refusal = refusal or reductions.tie_refusal(graph, pool)
            nodes = (act.node, *pool.nodes)
            if refusal is not None:
                yield Miss(self.name, pool.node, refusal, nodes)
            else:
                yield Match(self, nodes, (pool.node,), {"pool": pool, "activation": act})

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The maximum, then the activation."""
        pool, act = match.pool, match.activation
        if isinstance(pool, Reduction):
            result = reductions.reduced(g, pool.kind, act.input, pool.dims, pool.keepdim)
        else:
            options = list(pool.kernel), list(pool.stride), list(pool.padding), list(pool.dilation), pool.ceil_mode
            result = g(_OPERATORS[pool.dims - 1], act.input, *options)
        return act.on(g, result)  # type: ignore[no-any-return]


def _refusal(pool: Pool, act: Activation) -> Refusal | None:
    """Why a maximum and an activation do not commute."""
    if not act.monotone:
        return Refusal(f"{function_name(act.node)} does not keep the order of numbers", act.node,
                       "use one that does, such as relu")  # fmt: skip
    indices = next((user for node in pool.nodes[:-1] for user in node.users if user is not pool.node), None)
    if indices is not None:
        return Refusal("where the maxima are is read too", indices, "ask for the maxima alone")
    if isinstance(pool, MaxPool) and not _holds_elements(pool):
        return Refusal("some window holds no element of the input", pool.node, "use less padding or a smaller dilation")
    return None


def _holds_elements(pool: MaxPool) -> bool:
    """Whether each window certainly holds an element: with gaps between its taps both may fall on padding."""
    if all(step == 1 for step in pool.dilation):
        return True
    sizes, outputs = value(pool.input).shape[-pool.dims :], value(pool.node).shape[-pool.dims :]
    if not all(isinstance(size, int) for size in (*sizes, *outputs)):
        return False
    return all(
        any(0 <= pool.stride[axis] * u + pool.dilation[axis] * i - pool.padding[axis] < sizes[axis]
            for i in range(pool.kernel[axis]))
        for axis in range(pool.dims) for u in range(outputs[axis])
    )  # fmt: skip
