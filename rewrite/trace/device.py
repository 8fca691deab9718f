"""Moving a graph to another device: what its operators and recorded values say of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat

if TYPE_CHECKING:
    from rewrite.graph import Graph


def retarget(graph: Graph, device: torch.device | str) -> Graph:
    """A copy of ``graph`` that makes its tensors on ``device``; weights are not moved.

    Every ``device`` argument of an operator is replaced, and every recorded value is recorded there.
    """
    device = torch.device(device)
    moved = graph.copy()

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return value
        made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
        return made.requires_grad_(value.requires_grad)

    with graph.fake_mode:
        for node in moved.nodes:
            if node.kwargs.get("device") is not None:
                node.kwargs = {**node.kwargs, "device": device}
            if "val" in node.meta:
                node.meta["val"] = compat.tree_map(there, node.meta["val"])
    return moved
