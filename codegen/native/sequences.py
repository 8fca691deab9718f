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

from codegen.native.calls import BUFFERS, leaves
from codegen.native.operators import operator
from codegen.native.pitch import pitch
from codegen.native.places import ALIGNMENT, planned
from codegen.native.runs import EXCITATION, KERNELS, Run, runs
from codegen.native.sites import constant
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_NOWHERE, _GIVEN, _BETWEEN, _RESULT = range(4)
_COPY = len(KERNELS)
_NONE = -1
"""The place of weights that are not there."""


def join(module: GraphModule) -> int:
    """Make one call of each run of our kernels over images; how many runs there are.

    Args:
        module: with recorded values, as :func:`codegen.native.binding.bind` leaves it. Changed.
    """
    count = 0
    for run in runs(module):
        _replace(module, run, count)
        count += 1
    if count:
        module.graph.eliminate_dead_code()
        _forget_parts(module)
        module.recompile()
    return count


def _forget_parts(module: GraphModule) -> None:
    """Delete packed weights that are part of a sequence's now."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name in module._buffers if name.startswith(BUFFERS) and name not in read]:
        delattr(module, name)


def _replace(module: GraphModule, run: Run, number: int) -> None:
    given, results, steps = run.given, run.results, _Steps(module, run)
    buffers = {"weights": torch.cat(steps.weights.parts), "steps": steps.numbers}
    shapes = [size for node in results for size in (*value(node).shape, int(leaves(node)))]
    graph = module.graph
    with graph.inserting_after(run.nodes[-1]):
        call = graph.call_function(operator("sequence"), (given, None, None, steps.memory, shapes))
    for place, name in enumerate(("weights", "steps"), start=1):
        module.register_buffer(f"sequence_{number}_{name}", buffers[name])
        with graph.inserting_before(call):
            call.update_arg(place, graph.get_attr(f"sequence_{number}_{name}"))
    items: dict[Node, Node] = {}
    for i, node in reversed(list(enumerate(results))):
        with graph.inserting_after(call):
            items[node] = graph.call_function(getitem, (call, i))
        items[node].meta = dict(node.meta)
    run.replace(items)


@dataclass
class _Weights:
    """Tensors as parts of one."""

    parts: list[Tensor] = field(default_factory=list)
    size: int = 0

    def add(self, tensor: Tensor | None) -> int:
        """Where a tensor begins; -1 for none."""
        if tensor is None:
            return _NONE
        begin, filling = self.size, -tensor.numel() % ALIGNMENT
        self.parts += [tensor.flatten(), tensor.new_zeros(filling)]
        self.size += tensor.numel() + filling
        return begin


class _Steps:
    """The steps of a run as numbers, in the order of ``Step`` in ``sequence.h``.

    Attributes:
        numbers: one row for each step.
        weights: of all steps.
        memory: the size of the block for what is between them, in floats.
    """

    def __init__(self, module: GraphModule, run: Run):
        self._module, self._run = module, run
        lives, results = run.lives(), run.results
        sizes = {node: value(node).numel() for node in lives if node not in results}
        places, self.memory = planned(sizes, lives)
        self._where = {node: (_GIVEN, i) for i, node in enumerate(run.given)}
        self._where |= {node: (_RESULT, i) for i, node in enumerate(results)}
        self._where |= {node: (_BETWEEN, place) for node, place in places.items()}
        self.weights = _Weights()
        rows = []
        for node in run.nodes:
            rows += [self._kernel(node)] if node.target in KERNELS else self._copies(node)
        self.numbers = torch.tensor(rows, dtype=torch.int64, device="cpu")

    def _kernel(self, node: Node) -> list[int]:
        arguments: tuple[Any, ...] = node.args
        x, *tensors, geometry = arguments
        residual = None if node.target is EXCITATION else tensors.pop()
        known = [None if tensor is None else constant(self._module, tensor) for tensor in tensors]
        assert all((tensor is None) == (found is None) for tensor, found in zip(tensors, known, strict=True))
        offsets = [self.weights.add(tensor) for tensor in known]
        if node.target is EXCITATION:
            window, (hidden, inner, activation) = [0] * 9, geometry[:3]
        else:
            window, (activation, hidden, inner) = geometry[3:12], (geometry[12], 0, 0)
            offsets += [_NONE, _NONE]
        return [
            KERNELS.index(node.target), *self._at(x), *self._at(residual), *self._at(node), *offsets,
            *self._image(x), *self._image(node), 0 if residual is None else self._pitch(residual),
            *window, activation, hidden, inner,
        ]  # fmt: skip

    def _copies(self, node: Node) -> list[list[int]]:
        """What has to be copied for a concatenation."""
        found = []
        for part, channel in self._run.copies.get(node, ()):
            where, number, first = self._at(node)
            image = self._image(part)
            found.append([
                _COPY, *self._at(part), *self._at(None), where, number, first + channel, *[_NONE] * 4,
                *image, *image[:-1], self._pitch(node), 0, *[0] * 9, 0, 0, 0,
            ])  # fmt: skip
        return found

    def _at(self, node: Node | None) -> tuple[int, int, int]:
        if node is None:
            return _NOWHERE, 0, 0
        place = self._run.place(node)
        return *self._where[place.root], place.channel

    def _image(self, node: Node) -> list[int]:
        batch, channels, height, width = value(node).shape
        return [batch, height, width, channels, self._pitch(node)]

    def _pitch(self, node: Node) -> int:
        root = self._run.place(node).root
        found = int(value(root).shape[1]) if self._run.writes(root) else pitch(value(root))
        assert found is not None
        return found
