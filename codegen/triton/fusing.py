"""Regions of a program on a GPU run as kernels: planned, measured, bound."""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen.triton import device
from codegen.triton.binding import bind
from codegen.triton.export import generated
from codegen.triton.launching import Launch
from codegen.triton.planning import planned
from codegen.triton.tuning import fastest
from rewrite.events import emit
from rewrite.lowering import record
from rewrite.progress import Progress

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from codegen.triton.kernel import Kernel
    from codegen.triton.planning import KernelPlan
    from rewrite.lowered import Generated
    from rewrite.target import Target

SURE = 1.5
"""How many times faster a kernel has to be by prediction where nothing is measured."""

_TOLD: set[str] = set()


def fuse(
    module: GraphModule, examples: Sequence[Any], target: Target | None, elementwise: bool = False
) -> tuple[Generated, ...]:
    """Let a flat module on a GPU call kernels where they are faster; those that it calls.

    Args:
        module: as :func:`rewrite.lowering.flat_module` gives it. Changed.
        examples: one for each of its arguments; only their metadata is read.
        target: measures kernels beside what a general compiler makes of their regions; None to go by predictions.
        elementwise: only kernels in which NaN and infinities stay where the operators leave them.
    """
    on = _device(module, examples)
    if on is None:
        return ()
    rates = device.of(on)
    if rates is None:
        name = torch.cuda.get_device_name(on)
        _tell(
            f"there are no kernels for {name}, and all runs without them; NVIDIA's are from compute capability 8.0 on"
        )
        return ()
    record(module, examples)
    plan = planned(module.graph, rates, elementwise=elementwise)
    if not plan.regions:
        return ()
    if importlib.util.find_spec("triton") is None:
        longer = f"{1e6 * plan.gain:.0f} microseconds longer as predicted"
        _tell(f"Triton is not installed: {len(plan.regions)} regions that could be kernels take {longer}")
        return ()
    emit("kernels-planned", str(plan), logging.INFO, kernels=len(plan.regions), seconds=plan.gain)
    kernels = _chosen(plan, target, on)
    told = tuple(generated(kernel) for kernel in kernels)  # while the operators are there
    bind(module, kernels, Launch, "CUDA")
    return told


def _device(module: GraphModule, examples: Sequence[Any]) -> torch.device | None:
    """The GPU that a program runs on; None for other devices, and for several."""
    tensors = [*examples, *module.parameters(), *module.buffers()]
    found = {tensor.device for tensor in tensors if isinstance(tensor, Tensor) and tensor.dim() > 0}
    on = next(iter(found), None)
    return on if on is not None and len(found) == 1 and on.type == "cuda" else None


def _chosen(plan: KernelPlan, target: Target | None, on: torch.device) -> list[Kernel]:
    """The kernels that run: by measurement, or those that are faster by far as predicted."""
    kernels: list[Kernel] = []
    progress = Progress("Timing kernels")
    ends = time.perf_counter() + (target.allowance if target is not None else 0.0)
    for number, each in enumerate(sorted(plan.regions, key=lambda each: -each.gain)):
        measured = None if target is None else fastest(each, target, on, ends)
        if measured is not None:
            kernels += measured
        elif each.parts > SURE * each.seconds:
            kernels.append(each.candidates[0].emit())
            if target is not None:
                name = each.region.main.node.name
                emit("kernel-unmeasured", f"'{name}' is a kernel by its predicted time: none was measured", kernel=name)
        progress(number + 1, len(plan.regions))
    return kernels


def _tell(text: str) -> None:
    """Warn once in a process."""
    if text not in _TOLD:
        _TOLD.add(text)
        warnings.warn(text, RuntimeWarning, stacklevel=4)
