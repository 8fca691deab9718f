"""What layers cost, counted from their shapes: the figures by which a merge is made or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rewrite.ops import Convolution, Linear, value
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from passes.affine import Layer


class Cost(NamedTuple):
    """Floating-point operations in one call, for one sample where the batch is symbolic, and bytes of weights."""

    flops: int
    weights: int

    def fits(self, limit: Cost) -> bool:
        """Whether neither figure is larger."""
        return self.flops <= limit.flops and self.weights <= limit.weights

    def __str__(self) -> str:
        return f"{self.flops:,} FLOPs and {self.weights:,} bytes of weights"


def width(layer: Layer) -> tuple[int, int]:
    """The numbers of input and of output channels."""
    if isinstance(layer, Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def groups(layer: Layer) -> int:
    """The number of groups; a linear layer is one."""
    return layer.groups if isinstance(layer, Convolution) else 1


def weight_bytes(layers: Sequence[Layer], shared: bool = False) -> int:
    """The bytes of the weights and biases of layers, each once; those that others read too only where ``shared``."""
    nodes = {layer.node for layer in layers}
    parameters = {node for layer in layers for node in (layer.weight, layer.bias) if node is not None}
    return sum(_bytes(node) for node in parameters if shared or nodes.issuperset(node.users))


def sharing_refusal(layer: Layer) -> Refusal | None:
    """Why a layer's weights would be held twice if it became a part of another one; None where it alone reads them."""
    shared = next((node for node in (layer.weight, layer.bias) if node is not None and len(node.users) > 1), None)
    if shared is None:
        return None
    return Refusal("others read its weights too, which would be held twice", layer.node,
                   f"give {called(layer.node)} weights of its own")  # fmt: skip


def _bytes(node: Node) -> int:
    tensor = value(node)
    return int(tensor.numel()) * tensor.dtype.itemsize
