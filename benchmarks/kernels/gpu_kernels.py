"""The cases of kernels, measured one after the other: a program that ``benchmarks.gpu`` starts.

    python -m benchmarks.kernels.gpu_kernels

reads a line with the number of the first case and the seconds that there are, and tells the rows of each case. Where a
kernel has left the GPU in an error no other case can run in the same process: it ends, and is started again behind that
case.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.kernels.budget import Budget, TimeUp, limited
from benchmarks.kernels.comparing import Machine, compare
from benchmarks.kernels.gpu_cases import Case, cases
from benchmarks.kernels.measuring import Graphs, copy_rate, said
from benchmarks.kernels.programs import Teller
from codegen.triton import device
from codegen.triton.device import REFERENCE

CASE = 40.0
"""Seconds that one case may take."""

_LEAST = 2.0
"""Seconds without which no case begins."""

BROKEN = 3
"""The exit status after an error that the process cannot recover from."""


def measure(chosen: Sequence[Case], machine: Machine, budget: Budget, tell: Callable[..., None], first: int = 0) -> int:
    """Tell the rows of all cases that there is time for; the exit status.

    Args:
        chosen: the cases.
        machine: where.
        budget: what there is.
        tell: takes the number of the case that begins, the rows of one, and what has failed.
        first: the number of the first case.
    """
    for number, case in enumerate(chosen[first:], start=first):
        tell(begin=number)
        if budget.left < _LEAST:
            return 0
        try:
            with limited(min(CASE, budget.left)):
                tell(rows=compare(case, machine, seconds=3.0))
        except (Exception, TimeUp) as error:  # one case must not hide the others' figures
            tell(failed=said(error))
        if case.compiled:
            torch.compiler.reset()
        gc.collect()
        if machine.device == "cuda" and not is_alive():
            return BROKEN
    tell(begin=len(chosen))
    return 0


def is_alive() -> bool:
    """Whether kernels can still run in this process."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:  # after an illegal access all of them fail
        return False
    return True


def main() -> int:
    """Measure from one case on, as soon as it is said which."""
    teller = Teller()
    first, seconds = teller.wait().split()
    budget = Budget(float(seconds))
    torch.backends.cudnn.benchmark = True
    on = torch.device("cuda", torch.cuda.current_device())
    clock: Any = Graphs()
    machine = Machine(clock, copy_rate(clock, "cuda"), "cuda", device.of(on) or REFERENCE)
    teller.tell(rate=machine.rate)
    return measure(cases(), machine, budget, teller.tell, int(first))


if __name__ == "__main__":
    sys.exit(main())
