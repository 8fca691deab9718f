"""Programs with an algorithm that is wrong in half precision: they run in the precision that they were verified in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat
from rewrite.winograd import PRODUCT

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from rewrite.graph import Graph
    from rewrite.lowering import Executable


def needs_full(graph: Graph) -> bool:
    """Whether a program convolves by Winograd's algorithm, whose products cancel."""
    return any(node.target is torch.ops.aten.einsum.default and node.args[0] == PRODUCT for node in graph.calls())


def in_full(run: Executable, graph: Graph, dtype_of: Callable[[torch.dtype], torch.dtype]) -> Executable:
    """The same without autocast, with results of the dtypes that autocast would have given.

    Args:
        run: the program, operator by operator.
        graph: the program, with its inputs as recorded.
        dtype_of: the present dtype of a value recorded with one.
    """
    known: dict[Hashable, list[torch.dtype | None]] = {}

    def call(inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
        if not compat.is_any_autocast():
            return run(inputs, weights)
        key = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                    for kind in compat.device_kinds())  # fmt: skip
        if key not in known:
            known[key] = _dtypes(run, inputs, weights)
        with compat.without_autocast():
            found = run(recorded_inputs(graph, inputs, dtype_of), weights)
        return [value if dtype is None else value.to(dtype) for value, dtype in zip(found, known[key], strict=True)]

    return call


def recorded_inputs(graph: Graph, inputs: Sequence[Any], dtype_of: Callable[[torch.dtype], torch.dtype]) -> list[Any]:
    """Flat inputs in the dtypes that a program takes without autocast."""
    pairs = zip(graph.inputs, inputs, strict=True)
    return [value.to(dtype_of(node.meta["val"].dtype)) if isinstance(value, Tensor) else value for node, value in pairs]


def _dtypes(run: Executable, inputs: Sequence[Any], weights: Sequence[Tensor]) -> list[torch.dtype | None]:
    """The floating dtypes of the results under autocast as it is set; None for everything else."""
    mode = compat.FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value.detach(), static_shapes=True) if isinstance(value, Tensor) else value

    with mode, torch.no_grad():
        found = run([fake(value) for value in inputs], [fake(value) for value in weights])
    return [value.dtype if isinstance(value, Tensor) and value.is_floating_point() else None for value in found]
