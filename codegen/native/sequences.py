"""Layers one behind the other as one call, with places for what is between them.

Python, the dispatcher and the checks of compiled code take 5 to 10 microseconds for a call, which is as long as many
layers of a small network take. And memory that is planned is smaller than memory that is asked for: what is written
was read a short while ago, and is still in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from codegen.native.calls import BUFFERS
from codegen.native.operators import operator
from codegen.native.sites import constant
from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch.fx import GraphModule

_KINDS: dict[Any, int] = {operator(kind): i for i, kind in enumerate(("convolution", "depthwise", "winograd"))}
_EXCITATION = operator("excitation")
_KINDS[_EXCITATION] = len(_KINDS)

_NOWHERE, _GIVEN, _BETWEEN, _RESULT = range(4)
_ALIGNMENT = 16
"""Floats: a vector, and a line of the cache."""


def join(module: GraphModule) -> int:
    """Make one call of each run of our kernels over images; how many runs there are.

    Args:
        module: with recorded values, as :func:`codegen.native.binding.bind` leaves it. Changed.
    """
    runs: list[list[Node]] = [[]]
    for node in module.graph.nodes:
        if node.target in _KINDS:
            runs[-1].append(node)
        elif node.op != "get_attr":
            runs.append([])
    runs = [run for run in runs if len(run) > 1]
    for number, run in enumerate(runs):
        _replace(module, run, number)
    if runs:
        module.graph.eliminate_dead_code()
        _forget_parts(module)
        module.recompile()
    return len(runs)


def _forget_parts(module: GraphModule) -> None:
    """Delete packed weights that are part of a sequence's now."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name in module._buffers if name.startswith(BUFFERS) and name not in read]:
        delattr(module, name)


@dataclass
class _Weights:
    """Tensors as parts of one."""

    parts: list[Tensor] = field(default_factory=list)
    size: int = 0

    def add(self, tensor: Tensor | None) -> int:
        """Where a tensor begins; -1 for none."""
        if tensor is None:
            return -1
        begin, filling = self.size, -tensor.numel() % _ALIGNMENT
        self.parts += [tensor.flatten(), tensor.new_zeros(filling)]
        self.size += tensor.numel() + filling
        return begin


def _replace(module: GraphModule, run: Sequence[Node], number: int) -> None:
    inside = set(run)
    given = list(dict.fromkeys(read for node in run for read in _read(node) if read not in inside))
    results = [node for node in run if any(user not in inside for user in node.users)]
    places, memory = planned(run, set(run) - set(results))
    where = {node: (_GIVEN, i) for i, node in enumerate(given)}
    where |= {node: (_RESULT, i) for i, node in enumerate(results)}
    where |= {node: (_BETWEEN, place) for node, place in places.items()}
    weights = _Weights()
    steps = torch.tensor([_step(module, node, where, weights) for node in run], dtype=torch.int64, device="cpu")
    module.register_buffer(f"sequence_{number}_weights", torch.cat(weights.parts))
    module.register_buffer(f"sequence_{number}_steps", steps)
    shapes = [size for node in results for size in (*value(node).shape, _leaves_program(node))]
    graph = module.graph
    with graph.inserting_after(run[-1]):
        call = graph.call_function(operator("sequence"), (given, None, None, memory, shapes))
    with graph.inserting_before(call):
        for place, name in enumerate(("weights", "steps"), start=1):
            call.update_arg(place, graph.get_attr(f"sequence_{number}_{name}"))
    for i, node in reversed(list(enumerate(results))):
        with graph.inserting_after(call):
            item = graph.call_function(getitem, (call, i))
        item.meta = dict(node.meta)
        node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in inside)
    for node in reversed(run):
        graph.erase_node(node)


def _read(node: Node) -> list[Node]:
    """The images that a kernel reads."""
    places = (0,) if node.target is _EXCITATION else (0, 3)
    return [read for place in places if isinstance(read := node.args[place], Node)]


def _leaves_program(node: Node) -> int:
    """Whether a kernel's result leaves the program: the last number of its geometry, where that may be."""
    geometry: Any = node.args[-1]
    return 0 if node.target is _EXCITATION else int(geometry[-1])


def _step(module: GraphModule, node: Node, where: dict[Node, tuple[int, int]], weights: _Weights) -> list[int]:
    """The numbers of one step, in the order of ``Step`` in ``sequence.h``."""
    arguments: tuple[Any, ...] = node.args
    x, *tensors, geometry = arguments
    residual = None if node.target is _EXCITATION else tensors.pop()
    known = [None if tensor is None else constant(module, tensor) for tensor in tensors]
    assert all((tensor is None) == (found is None) for tensor, found in zip(tensors, known, strict=True))
    offsets = [weights.add(tensor) for tensor in known]
    if node.target is _EXCITATION:
        window, (hidden, inner, activation) = [0] * 9, geometry[:3]
    else:
        window, (activation, hidden, inner) = geometry[3:12], (geometry[12], 0, 0)
        offsets += [-1, -1]
    nowhere = (_NOWHERE, 0)
    return [
        _KINDS[node.target], *where[x], *(nowhere if residual is None else where[residual]), *where[node], *offsets,
        *_image(x), *_image(node), *window, activation, hidden, inner,
    ]  # fmt: skip


def _image(node: Any) -> list[int]:
    batch, channels, height, width = value(node).shape
    return [batch, height, width, channels]


def planned(run: Sequence[Node], between: Collection[Node]) -> tuple[dict[Node, int], int]:
    """Places in one block of memory for what is only read within a run, and the size of the block, in floats.

    The largest come first, each as low as it fits beside those that live at the same time ("Efficient Memory
    Management for Deep Neural Net Inference", Pisarchyk and Lee 2020).
    """
    time = {node: i for i, node in enumerate(run)}
    last = {node: max((time[user] for user in node.users), default=time[node]) for node in between}
    size = {node: -(-value(node).numel() // _ALIGNMENT) * _ALIGNMENT for node in between}
    places: dict[Node, int] = {}
    for node in sorted(between, key=lambda node: (-size[node], time[node])):
        beside = [other for other in places if time[node] <= last[other] and time[other] <= last[node]]
        place = 0
        for other in sorted(beside, key=places.__getitem__):
            if place + size[node] <= places[other]:
                break
            place = max(place, places[other] + size[other])
        places[node] = place
    return places, max((places[node] + size[node] for node in between), default=0)
