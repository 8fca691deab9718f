"""A rewritten graph as a whole against the graph that Dynamo traced, on the arguments of the call itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.cost import count
from rewrite.lowering import written_weights
from rewrite.trace import isolated
from rewrite.verify import verify_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule

    from rewrite.dynamo.lift import Lifted
    from rewrite.graph import Graph
    from rewrite.verdict import Verdict

REFERENCE_FLOPS, REFERENCE_BYTES = 2e10, 2**28
"""Up to so many operations, a second or two, and so many bytes of weights the truth is computed in float64; beyond,
Dynamo's graph is the truth."""


def verify(module: GraphModule, examples: Sequence[Any], lifted: Lifted, original: Graph, graph: Graph) -> Verdict:
    """Compare a rewritten graph with Dynamo's.

    Args:
        module: Dynamo's graph.
        examples: the real arguments; neither they nor the state that the call writes are changed.
        lifted: the graph as it was.
        original: the graph before rewriting.
        graph: after.
    """
    source = _Source(module, examples, lifted)
    program = graph.to_module({name: graph.weights[name].clone() for name in written_weights(graph)})
    folded = [tensor for name, tensor in graph.weights.items() if name not in original.weights]
    given = zip(lifted.arguments, examples, strict=True)
    inputs = [_concrete(value) for argument, value in given if not argument.is_weight]
    counts = count(original)
    reference = counts.flops <= REFERENCE_FLOPS and counts.weight_bytes <= REFERENCE_BYTES
    tensors = [value for value in examples if isinstance(value, Tensor)]
    with isolated(source, tensors, exclusive=False), compat.without_autocast():
        return verify_model(source, program, original, inputs, weights=folded, reference=reference)


def _concrete(value: Any) -> Any:
    return value.node.hint if isinstance(value, torch.SymInt) else value


class _Source(nn.Module):
    """Dynamo's graph as a function of its inputs, over copies of the weights that it writes, held under their names."""

    def __init__(self, module: GraphModule, examples: Sequence[Any], lifted: Lifted):
        super().__init__()
        self._call = module.forward
        self._lifted = lifted
        self._autocast = {kind: torch.get_autocast_dtype(kind) for kind in compat.device_kinds()
                          if torch.is_autocast_enabled(kind)}  # fmt: skip
        written = written_weights(lifted.graph)
        self._weights: dict[str, Any] = {}
        for argument, value in zip(lifted.arguments, examples, strict=True):
            if argument.is_weight:
                self._weights[argument.name] = value.detach().clone() if argument.name in written else value
        for name in written:
            _hold(self, name, self._weights[name])

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """All results but those that are written arguments."""
        given = iter(inputs)
        values = [self._weights[a.name] if a.is_weight else next(given) for a in self._lifted.arguments]
        with compat.autocast(self._autocast):
            results = self._call(*values)
        return tuple(value for i, value in enumerate(results) if i not in self._lifted.returned)


def _hold(root: nn.Module, name: str, tensor: Tensor) -> None:
    *path, key = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    root.__dict__[key] = tensor
