"""Lowering to torch's own operators, one call each. Runs everywhere and needs no compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewrite.lowering import run_eagerly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.fx import GraphModule

    from rewrite.graph import Graph
    from rewrite.lowering import Executable


class Eager:
    """Runs a graph operator by operator, for any sizes that it takes."""

    name = "eager"
    freezes = False
    static = False
    arranges = False

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as they are."""
        return weights

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        """The graph as generated Python code."""
        return run_eagerly(graph, tuple(weights))

    def rehearse(self, module: GraphModule) -> Callable[..., Sequence[Any]]:
        """The module's own code."""
        return module.forward

    def compile_traced(
        self, module: GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[..., Sequence[Any]]:
        """The module's own code."""
        return module.forward
