"""What the weights of a flow say of its channels: which are constant, and which are multiples of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from passes.affine import channel_axis
from passes.prune_exact import ends
from passes.prune_exact.alike import Alike, collinear
from passes.prune_exact.reading import step
from passes.prune_exact.steps import UNKNOWN, Step
from passes.prune_exact.weights import Weights
from rewrite.ops import BatchNorm, Convolution, Product, is_tensor, value, view
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from passes.prune_exact.flow import Flow
    from rewrite.graph import Graph


def made_constants(graph: Graph, node: Node) -> tuple[int, Tensor] | None:
    """The dimension of the channels of which a node makes constants whatever it reads, and these; None for none.

    A layer or a norm with weights of zero, or a product with a constant of zeros.
    """
    layer, found = ends.dense(node), view(node)
    if layer is not None:
        axis, given = (
            channel_axis(layer),
            ends.constants(Weights(graph), layer) if ends.legible(graph, layer) else _NOTHING,
        )
    elif isinstance(found, (BatchNorm, Convolution)):
        axis, given = 1, _whatever(graph, step(graph, node, found.input, 1))
    elif isinstance(found, Product):
        axis, given = _product(graph, found)
    else:
        return None
    given = given[torch.isfinite(given)]
    return (axis, given) if len(given) else None


_NOTHING = torch.empty(0, dtype=torch.float64)


def _whatever(graph: Graph, made: Step | Refusal) -> Tensor:
    """The constants of an operator over unknown values and its constant operands."""
    if isinstance(made, Refusal):
        return _NOTHING
    given = [
        _vector(Weights(graph), operand, axis) if graph.is_constant(operand) else _unknown(operand, axis)
        for operand, axis in zip(made.operands, made.axes, strict=True)
    ]
    return made.constants(Weights(graph), given)


def _product(graph: Graph, found: Product) -> tuple[int, Tensor]:
    for constant, other in ((found.left, found.right), (found.right, found.left)):
        if not (is_tensor(constant) and is_tensor(other)) or graph.is_constant(other):  # type: ignore[arg-type]
            continue
        assert isinstance(constant, Node)
        assert isinstance(other, Node)
        varying = [dim for dim, size in enumerate(value(constant).shape) if size != 1]
        if len(varying) == 1 and graph.is_constant(constant):
            axis = varying[0] - value(constant).dim() + value(other).dim()
            made = step(graph, found.node, other, axis) if axis >= 0 else None
            if isinstance(made, Step):
                return made.axis, _whatever(graph, made)
    return 0, _NOTHING


def _unknown(node: Node, axis: int) -> Tensor:
    return torch.full((int(value(node).shape[axis]),), UNKNOWN, dtype=torch.float64)


def _vector(weights: Weights, node: Node, axis: int) -> Tensor:
    """A constant that varies along its channels only."""
    if value(node).numel() == value(node).shape[axis] and value(node).dtype.is_floating_point:
        return weights.number(node).flatten()
    return _unknown(node, axis)


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of the channels of the values of a flow, for the weights as they are and rounded to bfloat16.

    Attributes:
        constant: the constants of a value in float64, NaN where a channel is not known to be constant. A weight of zero
            makes its product zero whatever the other factor is, so where an input is infinite or NaN a channel counts
            as constant that is NaN in the model.
        zero: which of them are zero.
        alike: which channels are multiples of each other; constants other than zero all are, and zeros are equal.
    """

    constant: dict[Node, Tensor]
    zero: dict[Node, Tensor]
    alike: dict[Node, Alike]


def constants(flow: Flow) -> Knowledge:
    """What is known of constants."""
    exact, rounded = (_constants(flow, Weights(flow.graph, narrow)) for narrow in (False, True))
    constant = {node: torch.where(torch.isfinite(rounded[node]), exact[node], UNKNOWN) for node in flow.axes}
    zero = {node: (exact[node] == 0) & (rounded[node] == 0) for node in flow.axes}
    return Knowledge(constant, zero, {})


def multiples(flow: Flow) -> Knowledge:
    """What is known of constants and multiples."""
    found = []
    for narrow in (False, True):
        weights = Weights(flow.graph, narrow)
        found.append(_alike(flow, weights, _constants(flow, weights)))
    exact, rounded = found
    known = constants(flow)
    known.alike.update((node, exact[node].both(rounded[node])) for node in flow.axes)
    return known


def _constants(flow: Flow, weights: Weights) -> dict[Node, Tensor]:
    found: dict[Node, Tensor] = {}
    for node in flow.axes:
        if node in flow.steps:
            made = flow.steps[node]
            given = made.constants(weights, [found[operand] for operand in made.operands])
        elif node in flow.constants:
            given = _vector(weights, node, flow.axes[node])
        elif node in flow.sources and ends.legible(flow.graph, flow.sources[node]):
            given = ends.constants(weights, flow.sources[node])
        else:
            given = _unknown(node, flow.axes[node])
        found[node] = torch.where(torch.isfinite(given), given, UNKNOWN)
    return found


def _alike(flow: Flow, weights: Weights, constant: dict[Node, Tensor]) -> dict[Node, Alike]:
    found: dict[Node, Alike] = {}
    for node in flow.axes:
        if node in flow.steps:
            made = flow.steps[node]
            given = made.alike(weights, [found[operand] for operand in made.operands])
        elif node in flow.sources and ends.legible(flow.graph, flow.sources[node]):
            rows = ends.row_values(weights, flow.sources[node])
            given = collinear([0] * len(rows), rows)
        else:
            given = Alike.apart(flow.channels(node))
        found[node] = given.with_constants(constant[node])
    return found
