"""Convolutions bound to the layout that the graph gives them.

TorchInductor lays out all convolutions of a program alike, with their channels last, and takes conversions in the graph
for copies that it can do without. An operator of one's own that is tagged to want contiguous operands gets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewrite.lowering import is_wide_depthwise
from rewrite.ops import Convolution, Copy, view_as
from rewrite.provenance import origin

if TYPE_CHECKING:
    from rewrite.graph import Graph

_NAME = "planar_convolution2d"
_LIBRARY = torch.library.Library("torch_rewrite", "FRAGMENT")
_LIBRARY.define(
    f"{_NAME}(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups) "
    "-> Tensor",
    tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag),
)


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    return torch.conv2d(input.contiguous(), weight.contiguous(), bias, stride, padding, dilation, groups).contiguous()


_LIBRARY.impl(_NAME, _convolution, "CompositeExplicitAutograd")
torch.library.register_fake(f"torch_rewrite::{_NAME}", _convolution, lib=_LIBRARY)


def is_bound(conv: Convolution) -> bool:
    """Whether a convolution computes in the layout of what it reads: depthwise, wide, over an explicit copy."""
    copy = view_as(conv.input, Copy)
    if copy is None or copy.layout != torch.contiguous_format or not is_wide_depthwise(conv):
        return False
    made = origin(copy.node) is not None  # copies of the model's own say nothing of what is faster
    return made and conv.batched and all(low == high for low, high in conv.padding)


def bound(graph: Graph) -> Graph:
    """The graph with operators that keep the layout of such convolutions; itself where there are none."""
    if not any(is_bound(conv) for node in graph.calls() if (conv := view_as(node, Convolution)) is not None):
        return graph
    graph = graph.copy()
    for node in list(graph.calls()):
        conv = view_as(node, Convolution)
        if conv is not None and is_bound(conv):
            padding = [low for low, _ in conv.padding]
            node.args = (
                conv.input,
                conv.weight,
                conv.bias,
                list(conv.stride),
                padding,
                list(conv.dilation),
                conv.groups,
            )
            node.kwargs = {}
            node.target = getattr(torch.ops.torch_rewrite, _NAME).default
    return graph
