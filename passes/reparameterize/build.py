"""Building the merged layers: their weights as algebra on the branches' weights, then the sum that is left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from passes import affine
from passes.convolve import CONVOLUTIONS
from passes.reparameterize.embed import embedded, regrouped
from passes.reparameterize.forms import Shift
from rewrite.ops import BatchNorm, Convolution, Linear, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.reparameterize.clusters import Cluster
    from passes.reparameterize.forms import Branch, Factor
    from passes.reparameterize.plan import Plan
    from rewrite.fragment import Builder
    from rewrite.ops import Term

aten = torch.ops.aten


def build(g: Builder, plan: Plan) -> Node:
    """The sum of the plan's layers and kept terms."""
    algebra = _Algebra(g)
    total: Node | None = None
    for i, part in enumerate(plan.clusters):
        merged = algebra.layer(part, plan.shifts if i == 0 else ())
        total = merged if total is None else g(aten.add.Tensor, total, merged)
    assert total is not None
    for term in plan.kept:
        total = _plus(g, total, term)
    return total


def _biases(part: Cluster) -> list[Shift]:
    layers = [
        (branch.leaf, branch.factors) for branch in part.branches if isinstance(branch.leaf, (Convolution, Linear))
    ]
    return [Shift(layer.bias, factors) for layer, factors in layers if layer.bias is not None]


def _plus(g: Builder, total: Node, term: Term) -> Node:
    if term.coefficient == 1:
        return g(aten.add.Tensor, total, term.node)
    if term.coefficient == -1:
        return g(aten.sub.Tensor, total, term.node)
    return g(aten.add.Tensor, total, term.node, alpha=term.coefficient)


class _Algebra:
    """Weights and biases of merged layers. Per-channel constants are numbers or vectors of C or 1 elements."""

    def __init__(self, g: Builder):
        self.g = g
        self.norms: dict[Node, Node] = {}

    def layer(self, part: Cluster, shifts: Sequence[Shift]) -> Node:
        """The layer of a cluster, with further constants in its bias."""
        g, model = self.g, part.layer
        assert model is not None
        kernel = self.kernel(part.branches[0], part, model)
        for branch in part.branches[1:]:
            kernel = g(aten.add.Tensor, kernel, self.kernel(branch, part, model))
        kernel = affine.cast(g, kernel, value(model.weight).dtype)
        bias = self.bias(part, shifts, kernel)
        if isinstance(model, Linear):
            return g(aten.linear.default, part.source, kernel, bias)
        x, padding = part.source, [tap.low for tap in part.taps]
        dilation = [tap.step for tap in part.taps]
        plain, same = CONVOLUTIONS[len(part.taps)]
        if part.needs_pad:
            x, padding = self.padded(part), [0] * len(padding)
        elif any(tap.low != tap.high for tap in part.taps):
            return g(same, x, kernel, bias, list(part.stride), "same", dilation, part.groups)
        return g(plain, x, kernel, bias, list(part.stride), padding, dilation, part.groups)

    def padded(self, part: Cluster) -> Node:
        """The source with the extension that the merged kernel reads."""
        amounts = [amount for tap in reversed(part.taps) for amount in (tap.low, tap.high)]
        if part.mode in ("", "zeros"):
            return self.g(aten.constant_pad_nd.default, part.source, amounts)
        return self.g(aten.pad.default, part.source, amounts, part.mode)

    def kernel(self, branch: Branch, part: Cluster, model: affine.Layer) -> Node:
        """A branch as a kernel of the cluster's layer, ``[O, C / groups, *taps]``."""
        kernel = self.scaled(self.leaf(branch, model), branch.factors)
        kernel = regrouped(self.g, kernel, branch.groups, part.groups)
        return embedded(self.g, kernel, branch.taps, part.taps)

    def leaf(self, branch: Branch, model: affine.Layer) -> Node:
        """A branch as a kernel by itself; ``model`` lends dtype and device to those that have no weight."""
        if isinstance(branch.leaf, Linear) and branch.leaf.stored_transposed:
            return self.g(aten.t.default, branch.leaf.weight)
        if isinstance(branch.leaf, (Convolution, Linear)):
            return branch.leaf.weight
        counts = [tap.count for tap in branch.taps]
        divisor = branch.leaf.divisor if branch.leaf is not None else None
        weight = 1 / (divisor or math.prod(counts))
        return self.g(aten.new_full.default, model.weight, [branch.groups, 1, *counts], weight)

    def bias(self, part: Cluster, shifts: Sequence[Shift], kernel: Node) -> Node | None:
        """The sum of all constants, ``[O]`` in the kernel's dtype; None where there are none."""
        number, total = 0.0, None
        for shift in (*_biases(part), *shifts):
            term = self.constant(shift)
            if isinstance(term, Node):
                total = term if total is None else self.g(aten.add.Tensor, total, term)
            else:
                number += term
        outputs = int(value(kernel).shape[0])
        if total is None:
            return self.g(aten.new_full.default, kernel, [outputs], number) if number else None
        if number:
            total = self.g(aten.add.Tensor, total, number)
        if int(value(total).shape[0]) != outputs:
            total = self.g(aten.expand.default, total, [outputs])
        return affine.cast(self.g, total, value(kernel).dtype)

    def constant(self, shift: Shift) -> float | Node:
        """A constant times its factors: a number or a vector."""
        vector: float | Node
        if isinstance(shift.by, BatchNorm):
            vector = affine.norm_shift(self.g, shift.by, self.norm_scale(shift.by))
        else:
            vector = self.flat(shift.by) if isinstance(shift.by, Node) else shift.by
        number, scale = self.product(shift.factors)
        if isinstance(vector, Node):
            vector = vector if number == 1 else self.g(aten.mul.Tensor, vector, number)
            return vector if scale is None else self.g(aten.mul.Tensor, vector, scale)
        return vector * number if scale is None else self.g(aten.mul.Tensor, scale, vector * number)

    def scaled(self, kernel: Node, factors: Sequence[Factor]) -> Node:
        """A kernel with its output channels multiplied by the factors."""
        number, scale = self.product(factors)
        if scale is not None:
            shape = [-1, *[1] * (value(kernel).dim() - 1)]
            kernel = self.g(aten.mul.Tensor, kernel, self.g(aten.reshape.default, scale, shape))
        return kernel if number == 1 else self.g(aten.mul.Tensor, kernel, number)

    def product(self, factors: Sequence[Factor]) -> tuple[float, Node | None]:
        """All factors as a number and a vector."""
        number, vector = 1.0, None
        for factor in factors:
            if not isinstance(factor.by, (BatchNorm, Node)):
                number = number / factor.by if factor.divides else number * factor.by
                continue
            by = self.norm_scale(factor.by) if isinstance(factor.by, BatchNorm) else self.flat(factor.by)
            if factor.divides:
                vector = self.g(aten.reciprocal.default, by) if vector is None else self.g(aten.div.Tensor, vector, by)
            else:
                vector = by if vector is None else self.g(aten.mul.Tensor, vector, by)
        return number, vector

    def flat(self, constant: Node) -> Node:
        """A per-channel constant as a vector."""
        return constant if value(constant).dim() == 1 else self.g(aten.reshape.default, constant, [-1])

    def norm_scale(self, norm: BatchNorm) -> Node:
        """The scale of a norm, built once."""
        if norm.node not in self.norms:
            self.norms[norm.node] = affine.norm_scale(self.g, norm)
        return self.norms[norm.node]
