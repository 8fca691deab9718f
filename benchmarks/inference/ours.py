"""The optimized model on each runtime.

Capture and search take most of the time of a row, and measuring algorithms most of that. So a model is searched and
tuned for Inductor at its first batch, further batches run the programs that are there, and the runtimes run the program
without measured choices: what is chosen for Inductor are kernels and transforms that they do not have. ``each`` tunes
for every runtime and batch.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmarks.inference.contender import TITLES, Contender
from codegen import LOWERINGS
from passes.select import Select
from rewrite import load, optimize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.inference.contender import Call, Runtime
    from rewrite.result import OptimizedModule

RUNTIMES: tuple[Runtime, ...] = ("inductor", "onnxruntime", "openvino")

Tuned = Literal["auto", "each"]


class Ours:
    """The optimized model, for calls of several batches.

    Args:
        model: the original.
        tuned: ``"each"`` tunes for every runtime and batch; ``"auto"`` as this module says.

    Attributes:
        programs: by contender, what is known of the program that it ran last.
    """

    def __init__(self, model: nn.Module, tuned: Tuned = "auto"):
        self._model, self._tuned = model, tuned
        self._made: dict[Runtime, tuple[OptimizedModule, str]] = {}
        self.programs: dict[str, dict[str, Any]] = {}

    def contenders(self, x: Tensor) -> list[Contender]:
        """The optimized model on each runtime, for one call."""
        return [Contender(name_of(lower), True, lower, partial(self._prepare, lower, x)) for lower in RUNTIMES]

    def _prepare(self, lower: Runtime, x: Tensor) -> Call:
        """The call, lowered.

        Raises:
            RuntimeError: it would run on something else.
        """
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fast, tuned = self._optimized(lower, x)
            with torch.no_grad():
                fast(x)
        expected = LOWERINGS[lower]().name
        if not any(low.lowering == expected and low.sizes == (tuple(x.shape),) for low in fast.lowerings):
            reasons = [str(note.message) for note in said if "operator by operator" in str(note.message)]
            raise RuntimeError(reasons[-1] if reasons else f"it does not run on {expected}")
        report = fast.report
        self.programs[name_of(lower)] = {
            "tuned": tuned,
            "rewrites": sum(len(record.commits) for record in report.records),
            "seconds": {phase: round(seconds, 1) for phase, seconds in report.time.items()},
            "notes": [note.splitlines()[0][:200] for note in report.notes if "measure" in note or "pay" in note],
        }
        return partial(fast, x)

    def _optimized(self, lower: Runtime, x: Tensor) -> tuple[OptimizedModule, str]:
        """The optimized model, and what it was tuned for."""
        each = self._tuned == "each"
        if each or lower not in self._made:
            plain = [made for made, _ in self._made.values() if not chosen(made)]
            if each or lower == "inductor":
                self._made[lower] = optimize(self._model, x, lower=lower), f"batch {len(x)}"
            elif plain:
                self._made[lower] = self._again(plain[0], lower), "off"
            else:  # what it computes is compared with float64 in any case
                self._made[lower] = optimize(self._model, x, lower=lower, tune="off", verify="off"), "off"
        return self._made[lower]

    def _again(self, fast: OptimizedModule, lower: Runtime) -> OptimizedModule:
        """The same program on another runtime, without the search for it."""
        with tempfile.TemporaryDirectory() as folder:
            fast.save(Path(folder) / "program.rewrite")
            return load(Path(folder) / "program.rewrite", self._model, lower=lower)


def chosen(fast: OptimizedModule) -> bool:
    """Whether something in a program was chosen by measurement."""
    return any(record.commits for record in fast.report.records if record.name == Select.name)


def name_of(runtime: str) -> str:
    """The contender of the optimized model on a runtime."""
    return f"ours, {TITLES[runtime]}"
