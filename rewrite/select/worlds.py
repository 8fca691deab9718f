"""Two worlds: a program whose inputs and convolutions give channels first, and one where they give channels last.

What lies between convolutions follows by the operators' own rules, on tensors without memory. A value that has the same
strides in both worlds has no layout to be chosen; any other has one of two.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rewrite import compat
from rewrite.ops import Convolution, view_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from rewrite.graph import Graph


class Layout(enum.IntEnum):
    """The order of the dimensions of a convolution's result in memory."""

    FIRST = 0
    """Channels before the spatial dimensions."""
    LAST = 1
    """Channels behind them."""


LAYOUTS = (Layout.FIRST, Layout.LAST)


@dataclass(frozen=True)
class Worlds:
    """The values of a program in both worlds, for the sizes of one call.

    Attributes:
        values: for each layout the value of each node: fake tensors, numbers.
    """

    values: tuple[dict[Node, Any], dict[Node, Any]]

    @classmethod
    def of(cls, graph: Graph, inputs: Sequence[Any]) -> Worlds:
        """The worlds of a graph for the sizes and strides of its flat inputs, of which only metadata is read.

        Raises:
            Exception: whatever an operator raises that cannot be run on fake tensors.
        """
        mode = compat.FakeTensorMode(allow_non_fake_inputs=True)
        first, last = (_values(graph, inputs, layout, mode) for layout in LAYOUTS)
        return cls((first, last))

    def value(self, node: Node, layout: Layout) -> Any:
        """The value of a node in one of the worlds."""
        return self.values[layout][node]

    def differs(self, node: Node) -> bool:
        """Whether a value lies in memory in one way in one world, and in another in the other one."""
        first, last = self.values[0].get(node), self.values[1].get(node)
        return isinstance(first, Tensor) and isinstance(last, Tensor) and order(first) != order(last)

    def bytes(self, node: Node) -> int:
        """The size of a value in bytes; 0 where it is no tensor."""
        value = self.values[0].get(node)
        return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions from the outermost to the innermost in memory; those of size one, which lie anywhere, left out."""
    strides: tuple[int, ...] = tensor.stride()
    dims = [dim for dim in range(tensor.dim()) if tensor.shape[dim] != 1]
    return tuple(sorted(dims, key=strides.__getitem__, reverse=True))


def recorded_order(recorded: Tensor) -> tuple[int, ...]:
    """The same of a recorded value, whose sizes may be symbolic: for those of the example that it was recorded with."""
    sizes, strides = ([_number(n) for n in given] for given in (recorded.shape, recorded.stride()))
    dims = [dim for dim in range(len(sizes)) if sizes[dim] != 1]
    return tuple(sorted(dims, key=strides.__getitem__, reverse=True))


def _number(size: Any) -> int:
    return compat.hint(size) if isinstance(size, torch.SymInt) else int(size)


def channels_last(tensor: Tensor) -> Tensor:
    """A tensor ``[N, C, *size]`` with its channels innermost in memory: itself, or a copy."""
    dims = tensor.dim()
    moved = tensor.permute(0, *range(2, dims), 1).contiguous()
    return moved.permute(0, dims - 1, *range(1, dims - 1))


def _values(graph: Graph, inputs: Sequence[Any], layout: Layout, mode: Any) -> dict[Node, Any]:
    env: dict[Node, Any] = {}
    given = dict(zip(graph.inputs, inputs, strict=True))
    with mode, torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = _input(node, given[node], layout, mode)
            elif node.op == "get_attr":
                env[node] = _weight(node)
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
                found = node.target(*args, **kwargs)  # type: ignore[operator]
                conv = view_as(node, Convolution)
                if conv is not None and conv.batched:
                    found = channels_last(found) if layout is Layout.LAST else found.contiguous()
                env[node] = found
    return env


def _input(node: Node, value: Any, layout: Layout, mode: Any) -> Any:
    """An input as it is given, which is one of the two ways if a convolution reads it and could read a copy."""
    if not isinstance(value, Tensor):
        return value
    found = mode.from_tensor(value, static_shapes=True)
    read = any(conv.batched for user in node.users if (conv := view_as(user, Convolution)) is not None)
    return channels_last(found) if read and layout is Layout.LAST else found


def _weight(node: Node) -> Any:
    recorded = node.meta["val"]
    if not isinstance(recorded, Tensor):
        return recorded
    return torch.empty_strided(recorded.shape, recorded.stride(), dtype=recorded.dtype, device=recorded.device)
