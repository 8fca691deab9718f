"""Winograd's algorithm undone, for programs that do not call our kernel of it: without that it is slow, and in half
precision it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codegen.native.calls import insert, take_over
from codegen.native.layouts import Layouts
from codegen.native.sites import constant, sites
from rewrite.lowering import record
from rewrite.ops import value
from rewrite.winograd import PRODUCT, TAPS, WinogradConvolution, evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.fx import GraphModule

aten = torch.ops.aten


def undo(module: GraphModule, examples: Sequence[Any]) -> int:
    """Let a flat module convolve where it uses Winograd's algorithm; how many convolutions there are.

    Args:
        module: as :func:`rewrite.lowering.flat_module` gives it; its weights are attributes. Changed.
        examples: one for each of its arguments; only their metadata is read.
    """
    if not any(node.args[:1] == (PRODUCT,) for node in module.graph.nodes):
        return 0
    record(module, examples)
    layers = [site.layer for site in sites(module) if isinstance(site.layer, WinogradConvolution)]
    strides = Layouts(True)
    strides.note(module)
    for number, layer in enumerate(layers):
        spectrum = constant(module, layer.spectrum)
        assert spectrum is not None
        low = [pair[0] for pair in layer.padding]
        outputs, inputs = value(layer.node).shape[2:], value(layer.input).shape[2:]
        high = [out - size - first + TAPS - 1 for out, size, first in zip(outputs, inputs, low, strict=True)]
        x = layer.input
        if low != high:
            with module.graph.inserting_before(layer.node):
                amounts = [low[1], high[1], low[0], high[0]]
                x = module.graph.call_function(aten.constant_pad_nd.default, (x, amounts, 0.0))
            low = [0, 0]
        arguments = x, kernel(spectrum), None, [1, 1], low, [1, 1], 1
        take_over(layer.node, insert(module, layer.node, aten.conv2d.default, arguments, f"undone_{number}"))
    module.graph.eliminate_dead_code()
    record(module, examples, strides.keep)
    module.recompile()
    return len(layers)


def kernel(spectrum: Tensor) -> Tensor:
    """The kernel ``[O, C, 3, 3]`` whose values at the points are ``spectrum``, ``[6, 6, C, O]``."""
    back = torch.linalg.pinv(evaluation(TAPS))
    return torch.einsum("ip,pqco,jq->ocij", back, spectrum.double(), back).to(spectrum.dtype)
