"""The values of weights, in the dtype that they have and in the narrowest that a program may be run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from rewrite.graph import Graph


@dataclass(frozen=True)
class Weights:
    """Reads the constants of a graph.

    Attributes:
        graph: the graph.
        rounded: values of float32 are rounded to bfloat16 first. What is to stay true of a program that is run in
            another dtype has to be true of these values too.
    """

    graph: Graph
    rounded: bool = False

    def value(self, node: Node) -> Tensor:
        """The value of a constant."""
        found = self.graph.value(node).cpu()
        return found.bfloat16() if self.rounded and found.dtype is torch.float32 else found

    def number(self, node: Node) -> Tensor:
        """The value of a constant in float64."""
        return self.value(node).double()
