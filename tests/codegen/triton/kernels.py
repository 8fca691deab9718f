"""Flat modules of small models, and the kernels of their regions, run by the interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from codegen.triton.binding import bind
from codegen.triton.depthwise import Depthwise
from codegen.triton.depthwise.emitting import Schedule, emitted
from codegen.triton.kernel import Kernel
from codegen.triton.launching import interpreted
from codegen.triton.packing import pack
from codegen.triton.region import Region
from rewrite.lowering import flat_module, record, weight_order
from rewrite.trace import capture

FAMILY = Depthwise()


def module_of(model: nn.Module, *inputs: Tensor) -> GraphModule:
    """The flat module of a model with its weights as attributes, and recorded values."""
    graph = capture(model.eval(), inputs).graph
    weights = {name: graph.weights[name].detach() for name in weight_order(graph)}
    module = flat_module(graph, (), weights)
    record(module, inputs)
    pack(module)
    return module


def regions_of(module: GraphModule) -> list[Region]:
    """The regions around the first mixer of a module, the largest last."""
    return list(FAMILY.regions(next(iter(FAMILY.mains(module.graph)))))


def run(
    module: GraphModule, region: Region, schedules: Sequence[Schedule], *inputs: Tensor
) -> tuple[Kernel, list[Tensor]]:
    """A module's outputs where a region of it runs as a kernel in the interpreter."""
    kernel = emitted(region, schedules)
    bind(module, [kernel], interpreted, "CPU")
    with torch.no_grad():
        return kernel, list(module(*inputs))
