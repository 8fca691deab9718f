"""An operator between a layer and what would be folded into it or merged with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.affine import Layer, channel_axis
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
    """What stands in the way: the layer below, and what keeps it from what is above.

    Attributes:
        layer: the layer.
        passed: the operators between, the one that reads the layer first.
    """

    layer: Layer
    passed: tuple[Node, ...]

    @property
    def culprit(self) -> Node:
        """The lowest operator; permutations and reshapes are blamed only where nothing else is in the way."""
        return next(iter(self._others), self.passed[0])

    @property
    def cast(self) -> Cast | None:
        """The culprit, where it is a conversion."""
        return view_as(self.culprit, Cast)

    @property
    def _others(self) -> list[Node]:
        return [node for node in self.passed if not isinstance(view(node), (Permute, Reshape))]

    def reason(self, what: str) -> str:
        """Why ``what``, "the norm", does not reach the layer."""
        if self.cast is None:
            return f"{function_name(self.culprit)} stands between the layer and {what}"
        change = f"from {dtype_name(self.cast.input)} to {dtype_name(self.cast.node)}"
        return f"a conversion {change} stands between the layer and {what}"

    def remedy(self, move: str) -> str:
        """How to do without the culprit; ``move``, "apply the norm", is to be done before it."""
        remedy = f"{move} before {called(self.culprit)}"
        if self.cast is not None:
            alone = len(self._others) == 1
            return f"{remedy}, or {compute(self.layer.node, dtype_name(self.cast.node))}" if alone else remedy
        path = module_path(self.culprit)
        # dropout is an item of a tuple, with its mask
        if path and any(map(is_random, (self.culprit, *self.culprit.all_input_nodes))):
            return f"call eval() on '{path}', or {remedy}"
        return remedy

    def refusal(self, what: str, channels: int, *, converted: bool = False) -> Refusal:
        """Why a map of ``channels`` channels, "the norm" as ``what``, does not reach the layer, and how it would.

        Args:
            what: its name.
            channels: how many it has where it is.
            converted: it has to be in the layer's dtype before a conversion.
        """
        there = value(self.layer.node).shape[channel_axis(self.layer)]
        changes = [] if there == channels else [f"over {there} channels"]
        if converted and self.cast is not None:
            changes.append(f"in {dtype_name(self.cast.input)}")
        move = f"apply {what}" + (f", {' and '.join(changes)}," if changes else "")
        return Refusal(self.reason(what), self.culprit, self.remedy(move))


def obstruction(graph: Graph, node: Node) -> Obstruction | None:
    """What stands between ``node`` and a layer shortly below it; None where there is no layer or nothing between."""
    found = between(graph, node, is_layer)
    if found is None or not found[1]:
        return None
    layer, passed = view(found[0]), found[1]
    assert isinstance(layer, (Convolution, Linear))
    return Obstruction(layer, passed)


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution or a linear layer."""
    return isinstance(view(node), (Convolution, Linear))


def compute(node: Node, dtype: str) -> str:
    """The remedy for a layer of another dtype: its weights decide as its input does."""
    return f"compute {called(node)} in {dtype}, weights and input"


def dtype_name(node: Node) -> str:
    """The dtype of a value, as users write it."""
    return str(value(node).dtype).removeprefix("torch.")
