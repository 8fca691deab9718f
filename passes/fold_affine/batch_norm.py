"""Fold an evaluated batch norm into the layer before it, or into the layers after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes import layout
from passes.fold_affine.before import Before, Reader
from passes.fold_affine.behind import Behind, Way
from passes.fold_affine.parts import FoldBehindConcatenation
from passes.fold_affine.reading import read_norm
from passes.obstruction import obstruction
from rewrite.ops import value
from rewrite.pipeline import Pass
from rewrite.rule import Fidelity, Miss, Refusal, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.fold_affine.maps import Map
    from rewrite.graph import Graph


@dataclass(frozen=True)
class FoldBatchNormAfter(Behind):
    r"""Fold an evaluated batch norm into the convolution or linear layer before it.

    .. math:: W'_o = a_o W_o,\quad b'_o = a_o b_o + s_o,\quad
        a = \gamma / \sqrt{\sigma^2 + \epsilon},\quad s = \beta - a \mu

    Operators between the two that only move the channels stay where they are.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a batch norm"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The norm that a node is."""
        return read_norm(node)

    def without_layer(self, graph: Graph, mapped: Map) -> Miss:
        """The miss of a norm behind no layer."""
        refusal, nodes = mapped.refusal(graph), mapped.view.nodes
        found = obstruction(graph, mapped.input)
        if found is not None:
            refusal = refusal or found.refusal("the norm", mapped.size)
            return Miss(self.name, mapped.node, refusal, (found.layer.node, *nodes))
        source = layout.below(mapped.input, 1)[0]
        neither = Refusal("it follows neither a convolution nor a linear layer", source,
                          "put it right behind a convolution or a linear layer")  # fmt: skip
        return Miss(self.name, mapped.node, refusal or neither, nodes)

    def misaligned(self, mapped: Map, way: Way) -> Refusal:
        """Why the norm's channels are not the layer's."""
        return Refusal(f"the norm's channels, {_channels_of(mapped)}, are not those of the layer", way.layer.node,
                       "transpose between the two, so that the norm finds them in dimension 1")  # fmt: skip


@dataclass(frozen=True)
class FoldBatchNormBefore(Before):
    r"""Fold an evaluated batch norm into the layers that read it: linear layers, or convolutions without padding.

    .. math:: W'_{oc} = a_c W_{oc},\quad b'_o = b_o + \sum_{c,i} W_{oci} s_c

    A convolution that pads sees zeros where the norm would have given ``s``, so its border forbids the fold.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a batch norm that a convolution or a linear layer reads"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The norm that a node is."""
        return read_norm(node)

    def misaligned(self, mapped: Map, reader: Reader) -> Refusal:
        """Why the norm's channels are not the layer's."""
        return Refusal(f"the norm's channels, {_channels_of(mapped)}, are not those of the layer", reader.layer.node,
                       "flatten both to [N, C], with all other dimensions in N")  # fmt: skip


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold every evaluated batch norm that stands beside a layer of constant weights into that layer."""

    def rules(self) -> tuple[Rule, ...]:
        """The layers before the norm are preferred to the ones after it."""
        return FoldBatchNormAfter(), FoldBehindConcatenation(norms_only=True), FoldBatchNormBefore()


def _channels_of(mapped: Map) -> str:
    return f"dimension 1 of {value(mapped.node).dim()}"
