"""The fastest kernel of a region, measured on the GPU beside what a general compiler makes of the same operators.

All of them run from CUDA graphs, so that what is compared is the work and not the way to it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen.triton.launching import Launch
from codegen.triton.reference import reference
from rewrite import compat
from rewrite.events import emit
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import Node

    from codegen.triton.kernel import Kernel
    from codegen.triton.planning import Planned
    from rewrite.target import Target

CANDIDATES = 4
"""Kernels of a region that are measured, in the order of their predictions."""

MARGIN = 0.03
"""The part of its time that a kernel has to save."""

_REPEATS = 8
_ALTERNATIVE = "operators"


@dataclass(frozen=True)
class Found:
    """What measuring a region gave.

    Attributes:
        kernels: the fastest one, or none where its operators are faster without.
    """

    kernels: tuple[Kernel, ...]


def fastest(planned: Planned, target: Target, on: torch.device, ends: float) -> Found | None:
    """Measure a region's kernels, or recall the measurement; None where there is no time or it tells nothing.

    Args:
        planned: the region with its candidates.
        target: keeps measurements.
        on: the GPU.
        ends: when to measure no more, in seconds of ``time.perf_counter``.
    """
    kernels = [candidate.emit() for candidate in planned.candidates[:CANDIDATES]]
    named = {kernel.operator: kernel for kernel in kernels}
    here = target if target.device == on else replace(target, device=on)
    what = described(kernels[0])
    found = here.known(what, {*named, _ALTERNATIVE})
    if found is None and time.perf_counter() < ends:
        try:
            found = here.measure(what, _contenders(named, on))
        except Exception as error:  # compilers and drivers fail in ways of their own, and nothing depends on it
            emit("kernel-unmeasured", f"{what}: {error}", kernel=what)
    if found is None:
        return None
    best = min(named, key=lambda name: found.ms[name])
    wins = found.ms[best] * (1 + max(found.noise, MARGIN)) < found.ms[_ALTERNATIVE]
    emit("kernel-measured", f"{what}: {found.ms}", kernel=what, milliseconds=dict(found.ms), taken=wins)
    return Found((named[best],) if wins else ())


def described(kernel: Kernel) -> str:
    """A region's operators, sizes, strides and dtypes, as text: equal where the times are."""
    region = kernel.region
    operands = [(tuple(value(node).shape), value(node).stride(), str(value(node).dtype)) for node in kernel.operands]
    names = [_call(node) for node in region.nodes]
    return f"kernel {names} of {operands}"


def _call(node: Node) -> str:
    constants = [argument for argument in (*node.args, *node.kwargs.values()) if not isinstance(argument, type(node))]
    return f"{node.target}{[str(each) for each in constants if not hasattr(each, 'name')]}"


def _contenders(named: dict[str, Kernel], on: torch.device) -> dict[str, Callable[[], Any]]:
    """Calls of each kernel and of the operators compiled, with random operands; those that cannot run are left out.

    Raises:
        RuntimeError: none of the kernels can run.
    """
    first = next(iter(named.values()))
    operands = [drawn(value(node), on) for node in first.operands]
    plain = reference(first)
    calls: dict[str, Callable[[], Any]] = {}
    for name, kernel in named.items():
        order = [operands[first.operands.index(node)] for node in kernel.operands]
        launch = Launch(kernel.launchable, _refused)
        launch(order)
        calls[name] = captured(functools.partial(launch, order))
    compiled = compat.inductor_compile(plain, operands, {})
    calls[_ALTERNATIVE] = captured(lambda: compiled(*operands))
    return calls


def _refused(operands: Sequence[Tensor]) -> Sequence[Tensor]:
    raise RuntimeError("the kernel cannot be compiled")


def drawn(like: Tensor, on: torch.device) -> Tensor:
    """Random values with the sizes, strides and dtype of a recorded tensor."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = torch.empty_strided(tuple(like.shape), like.stride(), dtype=like.dtype, device=on)
    if like.dtype.is_floating_point:
        return made.copy_(torch.rand(tuple(like.shape), generator=generator) * 0.1 + 0.05)
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
