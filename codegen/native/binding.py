"""Our kernels in a program, where they are faster than those that the compiler would call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from codegen.native.calls import insert, leaves, take_over
from codegen.native.contest import Call, contenders, described
from codegen.native.excitation import excitations, put
from codegen.native.layouts import Layouts
from codegen.native.library import available
from codegen.native.parts import absorb, concatenations
from codegen.native.sites import Site, sites
from codegen.native.transforms import CircularConvolution, circular_convolutions
from codegen.native.transforms import put as put_transform
from rewrite.events import emit
from rewrite.lowering import record
from rewrite.ops import Linear
from rewrite.winograd import PRODUCT, WinogradConvolution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.fx import GraphModule, Node

    from codegen.native.kernels import Kernel
    from rewrite.target import Measured, Target

aten = torch.ops.aten

MARGIN = 0.03
"""The part of its time that a kernel has to save."""
TIE = 0.03
"""The part of its time that one over images may lose: beside others it is a part of one call, and saves more."""


def bind(
    module: GraphModule, examples: Sequence[Any], target: Target | None, keep_strides: bool = True, layers: bool = True
) -> int:
    """Let a flat module call our kernels where they are faster; how many it calls.

    Squeeze-and-excitation is not timed: what is there instead makes the same passes over memory, in four calls.
    Winograd's algorithm was chosen before, by the time that it takes with our kernel, and no other one has it in one
    pass: it is bound wherever kernels can be compiled. What they read is copied where it is not in a layout that they
    take.

    Args:
        module: as :func:`rewrite.lowering.flat_module` gives it; its weights are attributes. Changed.
        examples: one for each of its arguments; only their metadata is read.
        target: measures, or recalls what it has measured; None for Winograd's algorithm alone.
        keep_strides: whether results of the module have the strides that they had.
        layers: whether all of that; else transforms alone, of what is converted to float32, as under autocast.
    """
    if target is None and not any(node.args[:1] == (PRODUCT,) for node in module.graph.nodes):
        return 0
    record(module, examples)
    excited = excitations(module) if layers and target is not None else []
    transformed = circular_convolutions(module) if target is not None else []
    found = sites(module, {node for one in excited for node in one.taken}) if layers else []
    if not (found or excited or transformed) or not available():
        return 0
    ends = time.perf_counter() + (target.allowance if target is not None else 0.0)
    chosen = [(site, kernel) for site in found if (kernel := faster(module, site, target, ends)) is not None]
    transformed = [one for one in transformed if _pays(module, one, target, ends)]
    if not (chosen or excited or transformed):
        return 0
    strides = Layouts(keep_strides)
    strides.note(module)
    calls: dict[Node, Node] = {}
    for number, one in enumerate(excited):
        calls[one.node] = put(module, one, number)
    for number, circle in enumerate(transformed):
        x = calls.get(circle.input, circle.input)
        x = x if layers else _in_float32(circle, x)
        calls[circle.node] = put_transform(module, circle, x, number, leaves(circle.node))
    for number, (site, kernel) in enumerate(chosen):
        kernel = kernel.leaving() if leaves(site.node) else kernel
        calls[site.node] = _replace(module, site, kernel, number, calls)
    if concatenations(module):
        record(module, examples, strides.keep)
        absorb(module)
    module.graph.eliminate_dead_code()
    record(module, examples, strides.keep)
    module.recompile()
    count = len(chosen) + len(excited) + len(transformed)
    emit("native-bound", f"{count} layers call kernels of our own", count=count)
    return count


def _in_float32(circle: CircularConvolution, x: Node) -> Node:
    """What a transform reads, converted where something else gives less than that."""
    with x.graph.inserting_before(circle.node):
        return x.graph.call_function(aten._to_copy.default, (x,), {"dtype": torch.float32})


def faster(module: GraphModule, site: Site, target: Target | None, ends: float) -> Kernel | None:
    """Our kernel with its weights for a site; None where the library's is faster, or cannot be timed.

    Args:
        module: with recorded values.
        site: one of its sites.
        target: measures.
        ends: when to measure no more, in seconds of ``time.perf_counter``.
    """
    if isinstance(site.layer, WinogradConvolution):
        return site.kernel(module)
    if target is None:
        return None
    found = _measured(target, described(site), lambda: contenders(module, site), site.node, ends)
    if found is None:
        return None
    alone = isinstance(site.layer, Linear) or site.is_row
    pays = _saves(found) if alone else found.ms["native"] * (1 - TIE) < found.ms["library"]
    return site.kernel(module) if pays else None


def _pays(module: GraphModule, site: CircularConvolution, target: Target | None, ends: float) -> bool:
    """Whether our transforms are faster than the library's."""
    if target is None:
        return False
    found = _measured(target, site.described(), lambda: site.contenders(module), site.node, ends)
    return found is not None and _saves(found)


def _saves(found: Measured) -> bool:
    return found.ms["native"] * (1 + max(found.noise, MARGIN)) < found.ms["library"]


def _measured(
    target: Target, named: str, contenders: Callable[[], dict[str, Call]], node: Node, ends: float
) -> Measured | None:
    """The times of the library's kernel and of ours, as they are known, or measured while there is time."""
    found = target.known(named, {"library", "native"})
    if found is None and time.perf_counter() < ends:
        try:
            with torch.autocast("cpu", enabled=False):
                found = target.measure(named, contenders())
        except (RuntimeError, ValueError, AttributeError) as error:  # a library that is not there, or refuses
            emit("native-left", f"'{node.name}' cannot be timed: {error}", node=node.name)
    return found


def _replace(module: GraphModule, site: Site, kernel: Kernel, number: int, calls: dict[Node, Node]) -> Node:
    """Call a kernel instead of a site; what it reads may have been replaced by calls before."""
    x = calls.get(site.input, site.input)
    residual = None if site.residual is None else calls.get(site.residual, site.residual)
    graph = module.graph
    if site.is_row:
        with graph.inserting_before(site.node):
            x = graph.call_function(aten.unsqueeze.default, (x, 2))
            residual = None if residual is None else graph.call_function(aten.unsqueeze.default, (residual, 2))
    arguments = x, kernel.packed, kernel.bias, residual, list(kernel.geometry)
    result = insert(module, site.node, kernel.operator, arguments, str(number))
    if site.is_row:
        with graph.inserting_after(result):
            result = graph.call_function(aten.squeeze.dim, (result, 2))
    return take_over(site.node, result)
