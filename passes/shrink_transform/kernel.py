"""The kernel that a spectrum is computed from: through reshapes of its leading dimensions, and real factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from rewrite.ops import Pad, Product, Reshape, Transform, value, view, view_as
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import View

aten = torch.ops.aten

_BEFORE_FOLDING = "compute it by rfft from a kernel, and name the rule before what folds weights"


@dataclass(frozen=True)
class Spectrum:
    """A spectrum that is computed from a real kernel, which is a constant.

    Attributes:
        transform: the transform of the kernel.
        steps: reshapes and products with real factors behind it, in order; none mixes frequencies.
        kernel: what is transformed, without zeros behind it.
        nodes: all of it.
    """

    transform: Transform
    steps: tuple[Reshape | Product, ...]
    kernel: Node
    nodes: tuple[Node, ...]

    @property
    def node(self) -> Node:
        """The spectrum."""
        return self.steps[-1].node if self.steps else self.transform.node

    def cut(self, g: Builder, taps: Sequence[int], scale: float) -> Node:
        """The first elements of the kernel along its last dimensions, as the spectrum is shaped and scaled."""
        kernel = first_elements(g, self.kernel, [(0, count) for count in taps])
        before = self.transform.node
        for step in self.steps:
            if isinstance(step, Reshape):
                kernel = g(aten.reshape.default, kernel, [*leading(step.node, len(taps)), *taps])
            else:
                factor = step.right if step.left is before else step.left
                kernel = g(aten.div.Tensor if step.divided else aten.mul.Tensor, kernel, factor)
            before = step.node
        return kernel if scale == 1 else g(aten.mul.Tensor, kernel, scale)


def spectrum_of(graph: Graph, node: Node, dims: int) -> Spectrum | Refusal:
    """How a constant spectrum over the last ``dims`` dimensions is computed from a kernel, or why that is not known."""
    steps: list[Reshape | Product] = []
    current = node
    while not isinstance(found := view(current), Transform):
        below = _below(found, dims)
        if below is None or not isinstance(found, (Reshape, Product)):
            what = "is a weight" if node.op == "get_attr" else "is not computed from a kernel by rfft alone"
            return Refusal(f"the spectrum {what}, so how many taps it has is not known", node, _BEFORE_FOLDING)
        steps.append(found)
        current = below
    if found.inverse or not found.real or value(found.input).is_complex():
        return Refusal("the spectrum is not one of real numbers", found.node, _BEFORE_FOLDING)
    kernel, zeros = without_zeros(found.input, dims)
    steps.reverse()
    return Spectrum(found, tuple(steps), kernel, (*zeros, found.node, *(step.node for step in steps)))


def _below(found: View | None, dims: int) -> Node | None:
    """What a step on the way to a spectrum is computed from; None where it does more than shape and scale."""
    if isinstance(found, Reshape):
        kept = value(found.input).shape[-dims:] == value(found.node).shape[-dims:]
        return found.input if kept and value(found.input).dim() >= dims else None
    if not isinstance(found, Product):
        return None
    left, right = found.left, found.right
    if isinstance(left, Node) and value(left).is_complex() and _is_factor(right, left, dims):
        return left
    if isinstance(right, Node) and value(right).is_complex() and _is_factor(left, right, dims) and not found.divided:
        return right
    return None


def _is_factor(factor: Node | float, spectrum: Node, dims: int) -> bool:
    """Whether it is a real number for all frequencies, in the precision of the spectrum."""
    if not isinstance(factor, Node):
        return True
    recorded = value(factor)
    return recorded.dtype == value(spectrum).dtype.to_real() and all(size == 1 for size in recorded.shape[-dims:])


def without_zeros(node: Node, dims: int) -> tuple[Node, tuple[Node, ...]]:
    """What zeros are appended to along the last dimensions, and the padding that does so, which nothing else reads."""
    pad = view_as(node, Pad)
    if pad is None or len(node.users) > 1 or pad.mode != "constant" or pad.fill != 0:
        return node, ()
    amounts = pad.amounts[-dims:]
    outer = pad.amounts[: -len(amounts)]
    if any(low or high < 0 for low, high in amounts) or any(low or high for low, high in outer):
        return node, ()
    return pad.input, (node,)


def leading(node: Node, dims: int) -> list[int]:
    """The sizes of a constant but for the last dimensions."""
    return [int(size) for size in value(node).shape[:-dims]]


def first_elements(g: Builder, x: Node, bounds: Sequence[tuple[int, int]]) -> Node:
    """The part of a tensor within bounds along its last dimensions."""
    rank = value(x).dim()
    for dim, (start, end) in enumerate(bounds, start=rank - len(bounds)):
        if (start, end) != (0, value(x).shape[dim]):
            x = g(aten.slice.Tensor, x, dim, start, end)
    return x
