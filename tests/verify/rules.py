"""Rules that replace one operator by whatever a function builds: right ones and wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops import BatchNorm, Convolution
from rewrite.pattern import Op
from rewrite.provenance import origin
from rewrite.rule import Fidelity, Match, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten


def replacing(
    target: Any, build: Callable[..., Any], fidelity: Fidelity = Fidelity.ELEMENTWISE, name: str = "replace",
    reads_values: bool = False,
) -> Rule:  # fmt: skip
    """A rule that replaces each captured ``target(*args)`` by ``build(g, node, *args)``."""
    options = {"fidelity": fidelity, "name": name, "reads_values": reads_values}

    class Replace(Rule, abstract=True):
        def find(self, graph, dirty):
            for node in dirty:
                if node.target is target and origin(node) is None:
                    yield Match(self, (node,), (node,))

        def rewrite(self, match, g):
            (node,) = match.nodes
            return build(g, node, *node.args)

    return dataclass(frozen=True)(type("Replace", (Replace,), options))()


@dataclass(frozen=True)
class FoldNorm(Rule):
    """A batch norm folded into the convolution before it, right in every geometry."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Op(BatchNorm, "norm", input=Op(Convolution, "conv"))

    def rewrite(self, match, g):
        conv, norm = match.conv, match.norm
        scale = g(aten.rsqrt.default, g(aten.add.Tensor, norm.var, norm.eps))
        if norm.weight is not None:
            scale = g(aten.mul.Tensor, scale, norm.weight)
        shift = g(aten.neg.default, norm.mean)
        if conv.bias is not None:
            shift = g(aten.add.Tensor, shift, conv.bias)
        shift = g(aten.mul.Tensor, shift, scale)
        if norm.bias is not None:
            shift = g(aten.add.Tensor, shift, norm.bias)
        weight = g(aten.mul.Tensor, conv.weight, g(aten.reshape.default, scale, [-1, *[1] * (conv.dims + 1)]))
        args = list(conv.node.args)
        args[1:3] = [weight, shift] if len(args) > 2 else [weight]
        return g(conv.node.target, *args)
