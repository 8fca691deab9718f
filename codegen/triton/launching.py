"""Running kernels: on a GPU, and in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite.events import emit

if TYPE_CHECKING:
    from codegen.triton.kernel import Launchable, Layout
    from codegen.triton.operators import Run

_ALIGNED = 16
"""Bytes: Triton compiles other code for addresses that are no multiples of them."""


def interprets() -> bool:
    """Whether Triton interprets kernels in this process, on tensors in main memory, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def empty(results: Sequence[Layout], device: torch.device) -> list[Tensor]:
    """New memory for what a kernel gives."""
    return [torch.empty_strided(r.shape, r.stride, dtype=r.dtype, device=device) for r in results]


def interpreted(kernel: Launchable, reference: Run) -> Run:
    """A function that runs a kernel in the interpreter; the reference is not asked for.

    Raises:
        ImportError: there is no Triton.
    """
    import numpy  # which the interpreter computes with

    function, source = kernel.source.kernel(), kernel.source

    def run(operands: Sequence[Tensor]) -> Sequence[Tensor]:
        results = empty(kernel.results, operands[0].device)
        with numpy.errstate(all="ignore"):  # infinities are values as others are
            function[(kernel.programs,)](*(x.detach() for x in operands), *results, kernel.samples, **source.constants)
        return results

    return run


class Launch:
    """A kernel on a GPU, with everything that is the same at each call made once.

    The first call compiles. Later ones give the compiled code the addresses and nothing else; operands that lie at
    other alignments than those that it was compiled for go through Triton's own way again.

    Args:
        kernel: what runs.
        reference: gives the results where it cannot be compiled, from then on, after one warning.
    """

    def __init__(self, kernel: Launchable, reference: Run):
        self._kernel = kernel
        self._fallback = reference
        self._function = kernel.source.kernel()
        self._grid = (kernel.programs, 1, 1)
        self._constants = tuple(kernel.source.constants.values())
        self._compiled: dict[int, Any] = {}
        self._failed = False
        self._lock = threading.Lock()

    def __call__(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results."""
        if self._failed:
            return self._fallback(operands)
        device = operands[0].device
        results = empty(self._kernel.results, device)
        tensors = (*operands, *results)
        ready = self._compiled.get(device.index)
        if ready is not None and device.index == torch.cuda.current_device() and _are_aligned(tensors):
            ready[self._grid](*tensors, self._kernel.samples, *self._constants)
            return results
        return self._first(device, tensors, operands, results)

    def _first(
        self, device: torch.device, tensors: Sequence[Tensor], operands: Sequence[Tensor], results: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        source = self._kernel.source
        warps = source.warps if torch.version.hip is None else max(1, source.warps // 2)  # of 64 threads there
        try:
            with torch.cuda.device(device), self._lock:
                compiled = self._function[self._grid](
                    *tensors, self._kernel.samples, **source.constants, num_warps=warps, num_stages=source.stages
                )
        except Exception as error:  # Triton, LLVM and ptxas fail in ways of their own
            self._failed = True
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            emit("kernel-failed", f"{source.function} does not run: {first}", kernel=source.function)
            warnings.warn(
                f"the kernel '{source.function}' of {self._kernel.around} does not run, and torch's own "
                f"operators run instead: {first}",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._fallback(operands)
        if _are_aligned(tensors):
            assert device.index is not None
            self._compiled[device.index] = compiled
        return results


def _are_aligned(tensors: Sequence[Tensor]) -> bool:
    return not any(x.data_ptr() % _ALIGNED for x in tensors)
