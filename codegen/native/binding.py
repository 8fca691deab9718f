"""Our kernels in a program, where they are faster than those that the compiler would call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen.native.contest import contenders, described
from codegen.native.library import available
from codegen.native.operators import operator
from codegen.native.sites import Site, sites
from rewrite.events import emit
from rewrite.lowering import record
from rewrite.ops import value
from rewrite.winograd import WinogradConvolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule, Node

    from codegen.native.kernels import Kernel
    from rewrite.target import Target

aten = torch.ops.aten

MARGIN = 0.03
"""The least part of its time that another kernel has to save."""


def bind(module: GraphModule, examples: Sequence[Any], target: Target | None, keep_strides: bool = True) -> int:
    """Let a flat module call our kernels where they are faster; how many it calls.

    Winograd's algorithm was chosen before, by the time that it takes with our kernel, and no other one has it in one
    pass: it is bound wherever kernels can be compiled. What they read is copied to channels last where it is not in
    that layout.

    Args:
        module: as :func:`rewrite.lowering.flat_module` gives it; its weights are attributes. Changed.
        examples: one for each of its arguments; only their metadata is read.
        target: measures, or recalls what it has measured; None for Winograd's algorithm alone.
        keep_strides: whether results of the module have the strides that they had.
    """
    if target is None and not any(node.target is aten.einsum.default for node in module.graph.nodes):
        return 0
    if not available():
        return 0
    record(module, examples)
    chosen = [(site, kernel) for site in sites(module) if (kernel := faster(module, site, target)) is not None]
    if not chosen:
        return 0
    results = [node for node in module.graph.output_node().all_input_nodes if isinstance(node.meta["val"], Tensor)]
    strides = {node: value(node).stride() for node in results}
    calls: dict[Node, Node] = {}
    for number, (site, kernel) in enumerate(chosen):
        calls[site.node] = _replace(module, site, kernel, number, calls)
    module.graph.eliminate_dead_code()
    record(module, examples)
    _convert(module, set(calls.values()))
    if keep_strides:
        _restore(module, {calls.get(node, node): stride for node, stride in strides.items()})
    module.recompile()
    emit("native-bound", f"{len(chosen)} layers call kernels of our own", count=len(chosen))
    return len(chosen)


def faster(module: GraphModule, site: Site, target: Target | None) -> Kernel | None:
    """Our kernel with its weights for a site; None where the library's is as fast, or cannot be timed."""
    if isinstance(site.layer, WinogradConvolution):
        return site.kernel(module)
    if target is None:
        return None
    named = described(site)
    found = target.known(named, {"library", "native"})
    if found is None:
        try:
            calls = contenders(module, site)
            found = target.measure(named, calls)
        except (RuntimeError, ValueError, AttributeError) as error:  # a library that is not there, or refuses
            emit("native-left", f"'{site.node.name}' cannot be timed: {error}", node=site.node.name)
    if found is None or found.ms["native"] * (1 + max(found.noise, MARGIN)) >= found.ms["library"]:
        return None
    return site.kernel(module)


def _replace(module: GraphModule, site: Site, kernel: Kernel, number: int, calls: dict[Node, Node]) -> Node:
    """Call a kernel instead of a site; what it reads may have been replaced by calls before."""
    x = calls.get(site.input, site.input)
    residual = None if site.residual is None else calls.get(site.residual, site.residual)
    weights = {f"native_{number}_packed": kernel.packed, f"native_{number}_bias": kernel.bias}
    graph = module.graph
    with graph.inserting_after(site.node):
        call = graph.call_function(kernel.operator, (x, None, None, residual, list(kernel.geometry)))
    for place, (name, tensor) in enumerate(weights.items(), start=1):
        if tensor is not None:
            module.register_buffer(name, tensor)
            with graph.inserting_before(call):
                call.update_arg(place, graph.get_attr(name))
    site.node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    call.meta = {key: entry for key, entry in site.node.meta.items() if key != "val"}
    return call


def _convert(module: GraphModule, calls: set[Node]) -> None:
    """Copy what our kernels read in another layout than they take; each value once."""
    copies: dict[tuple[Node, torch.memory_format], Node] = {}
    linear = operator("linear")
    for node in list(module.graph.nodes):
        if node not in calls:
            continue
        layout = torch.contiguous_format if node.target is linear else torch.channels_last
        for place in (0, 3):
            operand = node.args[place]
            if operand is None or value(operand).is_contiguous(memory_format=layout):
                continue
            if (operand, layout) not in copies:
                with module.graph.inserting_before(node):
                    copy = module.graph.call_function(aten.clone.default, (operand,), {"memory_format": layout})
                copies[operand, layout] = copy
            node.update_arg(place, copies[operand, layout])


def _restore(module: GraphModule, strides: dict[Node, tuple[int, ...]]) -> None:
    """Give results of the module the strides that they had."""
    output = module.graph.output_node()
    for node, wanted in strides.items():
        if value(node).stride() != wanted:
            with module.graph.inserting_before(output):
                made = module.graph.call_function(aten.new_empty_strided.default, (node, value(node).shape, wanted))
                copy = module.graph.call_function(aten.copy.default, (made, node))
            output.replace_input_with(node, copy)
