"""How algorithms and layouts are chosen: for which lowering, on which device, in how much time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from rewrite.select.selection import Selection
from rewrite.target import Target

if TYPE_CHECKING:
    from rewrite.lowering import Lowering

Tune = Literal["off", "quick", "full"]

BUDGET: dict[str, float] = {"quick": 20.0, "full": 300.0}
"""Seconds that measuring the operators of a program may take unless the user says otherwise."""

_ONE = {"quick": (0.5, 7), "full": (5.0, 40)}
"""Seconds and rounds for one operator."""


def _silent(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Tuning:
    """How a program's algorithms and layouts are chosen.

    Attributes:
        lowering: runs the programs.
        target: the device and what was measured on it.
        tune: how thoroughly each operator is measured: ``"quick"`` or ``"full"``.
        budget: seconds that measuring the operators of one program may take.
        progress: told how many of how many operators have been measured.
    """

    lowering: Lowering
    target: Target = field(default_factory=Target)
    tune: Tune = "quick"
    budget: float | None = None
    progress: Callable[[int, int], None] = _silent

    @property
    def identity(self) -> str:
        """What a choice depends on, as text: equal in processes that choose alike."""
        machine = hashlib.sha256(self.target.name.encode()).hexdigest()[:16]
        return f"{self.tune} in {self.seconds:g} s for {self.lowering.name} on {machine}"

    @property
    def seconds(self) -> float:
        """How long measuring the operators of a program may take."""
        return BUDGET[self.tune] if self.budget is None else self.budget

    def selection(self, inputs: Sequence[Any]) -> Selection | None:
        """The selection for a call with these flat inputs; None where nothing of it could be measured on the target."""
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if any(value.device.type != self.target.device.type or value.numel() == 0 for value in tensors):
            return None
        self.target.seconds, self.target.rounds = _ONE[self.tune]
        return Selection(inputs, self.lowering, self.target, self.seconds, self.progress)
