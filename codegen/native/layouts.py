"""The layouts that operators find when some of a program give channels last instead of what they gave before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from codegen.native.operators import KINDS, operator
from codegen.native.pitch import pitch
from codegen.native.transforms import distance
from rewrite.lowering import called
from rewrite.strides import reads_strides

if TYPE_CHECKING:
    from torch.fx import GraphModule

aten = torch.ops.aten

Strides = tuple[int, ...]


@dataclass
class Layouts:
    """What readers are to find: our kernels their layout, and who depends on strides those of before.

    Attributes:
        results: whether a module's results have to have the strides of before.
    """

    results: bool
    _wanted: dict[Node, list[Strides | None]] = field(default_factory=dict)
    _copies: dict[tuple[Node, Strides], Node] = field(default_factory=dict)

    def note(self, module: GraphModule) -> None:
        """Remember the strides that operators depend on, from the recorded values."""
        for node in module.graph.nodes:
            if reads_strides(node) or (self.results and node.op == "output"):
                self._wanted[node] = [_strides(operand.meta["val"]) for operand in node.all_input_nodes]

    def keep(self, node: Node) -> None:
        """Copy what a node reads in other strides than it has to find; for :func:`rewrite.lowering.record`."""
        for operand, strides in zip(node.all_input_nodes, self._wanted.get(node, ()), strict=False):
            if strides is not None and operand.meta["val"].stride() != strides:
                node.replace_input_with(operand, self._copied(node, operand, strides))
        if node.target is _FFT:
            signal: Any = node.args[0]
            found = signal.meta["val"]
            if distance(found) is None:
                node.update_arg(0, self._copied(node, signal, _in_layout(found.shape, torch.contiguous_format)))
        layout, places = _LAYOUTS.get(node.target, (torch.contiguous_format, ()))
        for place in places:
            read: Any = node.args[place]
            if read is not None and not _is_in(read.meta["val"], layout):
                node.update_arg(place, self._copied(node, read, _in_layout(read.meta["val"].shape, layout)))

    def _copied(self, reader: Node, operand: Node, strides: Strides) -> Node:
        known = self._copies.get((operand, strides))
        if known is not None:
            return known
        graph, shape = reader.graph, operand.meta["val"].shape
        with graph.inserting_before(reader):
            layout = next((each for each in _formats(len(shape)) if _in_layout(shape, each) == strides), None)
            if layout is not None:
                copy = graph.call_function(aten.clone.default, (operand,), {"memory_format": layout})
            else:
                made = graph.call_function(aten.new_empty_strided.default, (operand, list(shape), list(strides)))
                made.meta["val"] = called(made)
                copy = graph.call_function(aten.copy.default, (made, operand))
        copy.meta["val"] = called(copy)
        self._copies[operand, strides] = copy
        return copy


# what a kernel reads, and what it adds
_LAYOUTS: dict[Any, tuple[torch.memory_format, tuple[int, ...]]] = {
    operator(kind): (torch.contiguous_format if kind == "linear" else torch.channels_last, (0, 3)) for kind in KINDS
} | {operator("excitation"): (torch.channels_last, (0,))}
_FFT = operator("fft_convolution")


def _strides(value: Any) -> Strides | None:
    return value.stride() if isinstance(value, Tensor) else None


def _formats(dims: int) -> tuple[torch.memory_format, ...]:
    return (torch.contiguous_format, torch.channels_last) if dims == 4 else (torch.contiguous_format,)


def _is_in(x: Tensor, layout: torch.memory_format) -> bool:
    """Whether kernels can read it; images may be some of more channels."""
    return x.is_contiguous() if layout == torch.contiguous_format else pitch(x) is not None


def _in_layout(shape: Any, layout: torch.memory_format) -> Strides:
    return torch.empty(shape, device="meta", memory_format=layout).stride()
