"""An operator between a layer and what would be folded into it or merged with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.affine import Layer
from rewrite.between import between
from rewrite.graph import is_random
from rewrite.ops import Cast, Convolution, Linear, Permute, Reshape, value, view, view_as
from rewrite.provenance import called, function_name, module_path
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.graph import Graph


@dataclass(frozen=True)
class Obstruction:
    """What stands in the way: the layer below, and the operator that keeps it from what is above."""

    layer: Layer
    culprit: Node

    def refusal(self, what: str, move: str) -> Refusal:
        """Why ``what``, "the norm", does not reach the layer; ``move``, "apply the norm", is to be done before it."""
        cast = view_as(self.culprit, Cast)
        if cast is not None:
            change = f"from {_dtype(cast.input)} to {_dtype(cast.node)}"
            return Refusal(f"a conversion {change} stands between the layer and {what}", self.culprit,
                           f"{move} before {called(self.culprit)}, or convert the input of the layer")  # fmt: skip
        remedy = f"{move} before {called(self.culprit)}"
        path = module_path(self.culprit)
        # dropout is an item of a tuple, with its mask
        if path and any(map(is_random, (self.culprit, *self.culprit.all_input_nodes))):
            remedy = f"call eval() on '{path}', or {remedy}"
        return Refusal(f"{function_name(self.culprit)} stands between the layer and {what}", self.culprit, remedy)


def obstruction(graph: Graph, node: Node) -> Obstruction | None:
    """What stands between ``node`` and a layer shortly below it; None where there is no such layer or nothing between.

    Permutations and reshapes are blamed only where nothing else is in the way.
    """
    found = between(graph, node, is_layer)
    if found is None or not found[1]:
        return None
    layer, passed = view(found[0]), found[1]
    assert isinstance(layer, (Convolution, Linear))
    return Obstruction(layer, next((n for n in passed if not isinstance(view(n), (Permute, Reshape))), passed[0]))


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution or a linear layer."""
    return isinstance(view(node), (Convolution, Linear))


def _dtype(node: Node) -> str:
    return str(value(node).dtype).removeprefix("torch.")
