"""Fold weight and bias of a norm over features into the layers after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fold_affine.before import Before, Reader
from passes.fold_affine.reading import read_feature
from rewrite.ops import Convolution, GroupNorm, InstanceNorm, LayerNorm, Linear, RMSNorm
from rewrite.provenance import called
from rewrite.rule import Fidelity, Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.fold_affine.maps import Map
    from rewrite.graph import Graph


@dataclass(frozen=True)
class FoldNormAffine(Before):
    r"""Fold weight and bias of a layer norm, group norm, instance norm or RMS norm into the layers that read it.

    .. math:: W (\gamma \hat x + \beta) + b = (W \gamma) \hat x + (W \beta + b)

    The normalisation :math:`\hat x` stays. Nothing is moved less but the weights of the norm: operators that read
    weights become fewer by one. A layer's weight that others read too is left alone, for it would be there twice.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a norm with weight or bias that layers read"
    keeps = (Convolution, Linear, LayerNorm, GroupNorm, InstanceNorm, RMSNorm)

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The norm with parameters that a node is."""
        return read_feature(node)

    def unfit(self, graph: Graph, mapped: Map, reader: Reader) -> Refusal | None:
        """Why a layer cannot take the parameters."""
        weight = reader.layer.weight
        other = next((user for user in weight.users if user is not reader.layer.node), None)
        if other is not None and weight.op == "get_attr":
            return Refusal("the layer's weight is also read elsewhere, and would be needed twice", other,
                           f"give {called(reader.layer.node)} a weight of its own")  # fmt: skip
        return super().unfit(graph, mapped, reader)

    def misaligned(self, mapped: Map, reader: Reader) -> Refusal:
        """Why the norm's parameters are not those of the layer's channels."""
        return Refusal("the norm's parameters vary along other dimensions than the layer's channels",
                       reader.layer.node, "build the norm over the channels alone")  # fmt: skip

    def padded(self, mapped: Map, reader: Reader) -> Refusal | None:
        """Why a bias does not pass the zeros beside a layer's input."""
        return Refusal("the convolution pads with zeros after the norm, which its bias would have moved",
                       reader.layer.node, "set padding=0, or give the norm no bias")  # fmt: skip
