"""The fastest kernel of a region, measured on the GPU beside what a general compiler makes of the same operators.

All of them run from CUDA graphs, so that what is compared is the work and not the way to it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen.inductor import compiling
from codegen.triton.launching import Launch
from codegen.triton.reference import reference
from rewrite import compat
from rewrite.events import emit
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import Node

    from codegen.triton.kernel import Kernel, Layout
    from codegen.triton.planning import Planned
    from rewrite.target import Target

CANDIDATES = 4
"""Kernels of a region that are measured, in the order of their predictions."""

MARGIN = 0.03
"""The part of its time that a kernel has to save."""

_REPEATS = 8
_ALTERNATIVE = "operators"


def fastest(planned: Planned, target: Target, on: torch.device, ends: float) -> tuple[Kernel, ...] | None:
    """The fastest kernel of a region, or none where its operators are as fast without.

    Args:
        planned: the region with its candidates.
        target: keeps measurements.
        on: the GPU.
        ends: when to measure no more, in seconds of ``time.perf_counter``.

    Returns:
        None where there was no time, or the measurement tells nothing.
    """
    kernels = [candidate.emit() for candidate in planned.candidates[:CANDIDATES]]
    named = {kernel.operator: kernel for kernel in kernels}
    here = target if target.device == on else replace(target, device=on)
    what = described(kernels[0])
    found = here.known(what, {*named, _ALTERNATIVE})
    if found is None and time.perf_counter() < ends:
        try:
            with current(on):
                found = here.measure(what, _contenders(named, on))
        except Exception as error:  # compilers and drivers fail in ways of their own, and nothing depends on it
            emit("kernel-unmeasured", f"{what}: {error}", kernel=what)
    if found is None:
        return None
    best = min(named, key=lambda name: found.ms[name])
    wins = found.ms[best] * (1 + max(found.noise, MARGIN)) < found.ms[_ALTERNATIVE]
    emit("kernel-measured", f"{what}: {found.ms}", kernel=what, milliseconds=dict(found.ms), taken=wins)
    return (named[best],) if wins else ()


def current(on: torch.device) -> AbstractContextManager[Any]:
    """Within, streams, graphs and waiting are those of a GPU."""
    return torch.cuda.device(on)


def described(kernel: Kernel) -> str:
    """A region's operators, sizes, strides, dtypes and results, as text: equal where the times are."""
    return f"kernel {reference(kernel).code} of {kernel.reads} gives {kernel.results}"


def _contenders(named: dict[str, Kernel], on: torch.device) -> dict[str, Callable[[], Any]]:
    """Calls of each kernel and of the operators compiled, with random operands.

    What cannot run is as fast as the operators, which run in its place.
    """
    first = next(iter(named.values()))
    operands = {node: drawn(like, on) for node, like in zip(first.operands, first.reads, strict=True)}
    calls = {_ALTERNATIVE: captured(_compiled(first, operands))}
    for name, kernel in named.items():
        order = [operands[node] for node in kernel.operands]
        try:
            launch = Launch(kernel.launchable, _refused)
            launch(order)
            calls[name] = captured(functools.partial(_launched, launch, order, kernel))
        except Exception as error:  # Triton, LLVM and ptxas fail in ways of their own
            emit("kernel-failed", f"{name} cannot run: {error}", kernel=name)
            calls[name] = calls[_ALTERNATIVE]
    return calls


def _compiled(kernel: Kernel, operands: Mapping[Node, Tensor]) -> Callable[[], Any]:
    """A region's operators as Inductor compiles them, with what is constant in the program as it lies there."""
    module = reference(kernel)
    given: list[Tensor] = []
    for node, place in zip(kernel.operands, module.graph.find_nodes(op="placeholder"), strict=True):
        like = value(node)
        x = operands[node].as_strided(like.shape, like.stride()) if node in kernel.layouts else operands[node]
        if node.op != "get_attr":
            given.append(x)
            continue
        module.register_buffer(f"constant_{place.name}", x)
        with module.graph.inserting_before(place):
            place.replace_all_uses_with(module.graph.get_attr(f"constant_{place.name}"))
        module.graph.erase_node(place)
    module.recompile()
    with compiling():
        compiled = compat.inductor_compile(module, given, {"freezing": True})
    return lambda: compiled(*given)


def _launched(launch: Launch, operands: Sequence[Tensor], kernel: Kernel) -> None:
    """Run a kernel, and add the parts of its sums as the program does."""
    found = launch(operands)
    for node, made in zip(kernel.region.outputs, found, strict=True):
        if node in kernel.region.totals:
            made.sum(1)


def _refused(operands: Sequence[Tensor]) -> Sequence[Tensor]:
    raise RuntimeError("it does not compile")


def drawn(like: Layout, on: torch.device) -> Tensor:
    """Random values in memory like a tensor's."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=on)
    if like.dtype.is_floating_point:
        return made.copy_(torch.rand(like.shape, generator=generator) * 0.1 + 0.05)
    return made.zero_()


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Some runs of a call as a CUDA graph that is replayed; the call itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(_REPEATS):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return lambda: [call() for _ in range(_REPEATS)]
    return graph.replay
