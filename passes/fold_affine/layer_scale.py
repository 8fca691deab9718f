"""Fold a constant factor into the layer before it, or into the layers after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from passes import affine
from passes.fold_affine.before import Before
from passes.fold_affine.behind import Behind, Way
from passes.fold_affine.reading import read_factor
from rewrite.ops import Convolution, value
from rewrite.rule import Fidelity, Refusal

if TYPE_CHECKING:
    from passes.fold_affine.maps import Map
    from rewrite.graph import Graph


@dataclass(frozen=True)
class FoldLayerScale(Behind):
    r"""Fold a constant factor, a number or one for each channel, into the convolution or linear layer before it.

    .. math:: W'_o = \gamma_o W_o,\quad b'_o = \gamma_o b_o

    Operators between the two that only move channels stay where they are: ConvNeXt (Liu et al. 2022) scales after it
    returns to channels first, and attentions scale the queries, a part of what one layer computes; its other rows stay
    as they are. A number also passes from a product of two matrices to the layer behind one of them, as from the scores
    of an attention to its queries. One operator less.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a layer times a constant for each channel"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The product with a factor, the negation, that a node is.

        What is multiplied by a number and read elsewhere too is left alone: it is part of an activation, as of gelu.
        """
        found = read_factor(graph, node)
        shared = found is not None and found.numbers is not None and len(found.input.users) > 1
        return None if shared else found

    def misaligned(self, mapped: Map, way: Way) -> Refusal | None:
        """Why the factor is not one for each channel of the layer."""
        scale = getattr(mapped, "factor", None)
        if not isinstance(scale, Node) or len(mapped.dims) > 1:
            return None
        return Refusal("the factor is not one for each output channel of the layer", scale,
                       _channel_remedy(way.layer, scale))  # fmt: skip


@dataclass(frozen=True)
class FoldInputScale(Before):
    r"""Fold a constant factor, a number or one for each channel, into the layers that read the product.

    .. math:: W'_{oc} = \gamma_c W_{oc}

    Zeros that a convolution pads with stay zeros. One operator less.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a product with a constant that layers read"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The product with a constant that a node is."""
        found = read_factor(graph, node)
        constant = found is not None and (not isinstance(found.factor, Node) or graph.is_constant(found.factor))
        return found if constant else None


def _channel_remedy(layer: affine.Layer, scale: Node) -> str:
    outputs = affine.outputs_of(layer)
    if value(scale).numel() != outputs:
        return f"give it {outputs} elements along the layer's channels"
    return f"reshape it to {[outputs, *[1] * (layer.dims if isinstance(layer, Convolution) else 0)]}"
