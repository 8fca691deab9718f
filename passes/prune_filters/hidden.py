"""Two layers with channels between them that nobody else reads: what stands between keeps channels apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes import affine
from passes.convolve import convolution_refusal
from passes.split_support import is_depthwise
from rewrite.ops import Activation, Convolution, Linear, activation, value, view
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.graph import Graph

Layer = Convolution | Linear


@dataclass(frozen=True)
class Hidden:
    """Channels between two layers.

    Attributes:
        writer: the layer that makes them.
        between: activations and depthwise convolutions, in order.
        reader: the layer that reads them.
    """

    writer: Layer
    between: tuple[Activation | Convolution, ...]
    reader: Layer

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of them, the reader last."""
        return (self.writer.node, *(step.node for step in self.between), self.reader.node)

    @property
    def channels(self) -> int:
        """How many there are."""
        return affine.outputs_of(self.writer)

    @property
    def axis(self) -> int:
        """The dimension of the reader's input that holds them."""
        return value(self.reader.input).dim() - 1 if isinstance(self.reader, Linear) else 1


def dense(node: Node) -> Layer | None:
    """A layer in which each output reads every channel."""
    found = view(node)
    if isinstance(found, Convolution) and found.groups == 1 and not found.transposed:
        return found
    return found if isinstance(found, Linear) else None


def hidden_behind(graph: Graph, node: Node) -> Hidden | Refusal | None:
    """The channels that a reader reads; why not, or None where it reads no layer's channels."""
    reader = dense(node)
    if reader is None:
        return None
    between: list[Activation | Convolution] = []
    current = reader.input
    while (writer := dense(current)) is None:
        step = _between(current)
        if step is None:
            return None
        between.insert(0, step)
        current = step.input
    if isinstance(writer, Linear) != isinstance(reader, Linear):
        return None
    if affine.outputs_of(writer) < 2 or value(reader.input).dim() < 2:
        return None
    for layer in (writer, reader, *(step for step in between if isinstance(step, Convolution))):
        refusal = affine.layer_refusal(graph, layer)
        if refusal is None and isinstance(layer, Convolution):
            refusal = convolution_refusal(layer)
        if refusal is not None:
            return refusal
    return Hidden(writer, tuple(between), reader)


def _between(node: Node) -> Activation | Convolution | None:
    """An operator that keeps channels apart, whatever is in them."""
    found = activation(node)
    if found is not None:
        return found
    conv = view(node)
    return conv if isinstance(conv, Convolution) and not conv.transposed and is_depthwise(conv) else None
