"""Kernels of convolutions laid out as kernels on channels-last images read them: the channels of a tap side by side."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from torch import Tensor

from codegen.triton.depthwise.mixer import mixers
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import GraphModule


def pack(module: GraphModule) -> None:
    """Lay out the constant weights of depthwise convolutions whose input has its channels last.

    Args:
        module: flat, with recorded values. Changed.
    """
    for mixer in list(mixers(module.graph)):
        if value(mixer.input).stride()[1] != 1:
            continue
        for branch in mixer.branches:
            weight = branch.weight
            if weight is not None and weight.op == "get_attr" and len(weight.users) == 1:
                tensor = operator.attrgetter(str(weight.target))(module)
                _set(module, str(weight.target), by_tap(tensor))
                weight.meta["val"] = by_tap(value(weight))


def by_tap(weight: Tensor) -> Tensor:
    """The same ``[C, 1, *kernel]`` in memory as ``[*kernel, C]``."""
    return weight.movedim(0, -1).contiguous().movedim(-1, 0)


def _set(module: GraphModule, name: str, tensor: Tensor) -> None:
    holder, _, last = name.rpartition(".")
    owner = operator.attrgetter(holder)(module) if holder else module
    delattr(owner, last)
    owner.register_buffer(last, tensor.detach())
