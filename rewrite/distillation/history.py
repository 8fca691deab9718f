"""What a training has done: the losses of its stages, and why each ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rewrite.report.text import table

if TYPE_CHECKING:
    from torch import nn

_HEAD = ("stage", "steps", "epochs", "first loss", "last loss", "best validation", "stopped")


@dataclass
class Stage:
    """One stage.

    Attributes:
        name: ``"blocks"`` or ``"outputs"``.
        losses: the loss of each step, before it, the mean over all processes.
        starts: the steps before which epochs began.
        validation: the number of steps and the loss on the held-out batches, for each time that it was measured, the
            first before all steps.
        boundaries: for stage ``"blocks"`` the relative error at each boundary, at the first and the last step.
        stopped: why it ended; empty while it goes on.
    """

    name: str
    losses: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    boundaries: dict[str, tuple[float, float]] = field(default_factory=dict)
    stopped: str = ""

    @property
    def epochs(self) -> list[float]:
        """The mean loss of each epoch, of what there was of the last one."""
        ends = [*self.starts[1:], len(self.losses)]
        means = (self.losses[start:end] for start, end in zip(self.starts, ends, strict=True))
        return [sum(losses) / len(losses) for losses in means if losses]

    @property
    def best(self) -> tuple[int, float] | None:
        """The validation with the lowest loss, whose weights the stage ended with."""
        return min(self.validation, key=lambda one: one[1], default=None)

    @property
    def waited(self) -> int:
        """How many validations there were since the best one."""
        return len(self.validation) - 1 - self.validation.index(self.best) if self.best is not None else 0

    def row(self) -> tuple[str, ...]:
        """Its row in a table."""
        best = "" if self.best is None else f"{self.best[1]:.4g} at {self.best[0]}"
        return (
            self.name, str(len(self.losses)), str(len(self.epochs)), f"{self.losses[0]:.4g}", f"{self.losses[-1]:.4g}",
            best, self.stopped,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Distilled:
    """What :func:`rewrite.distill` returns; ``print`` shows the history.

    Attributes:
        student: the module that was given, trained.
        stages: the history.
        seconds: how long it took, in this process and since the checkpoint that it went on from.
        processes: how many trained together.
        resumed: the number of steps in the checkpoint that it went on from, None without one.
    """

    student: nn.Module
    stages: tuple[Stage, ...]
    seconds: float
    processes: int = 1
    resumed: int | None = None

    @property
    def best(self) -> tuple[int, float] | None:
        """The step and loss of the validation whose weights the student has; None without validation."""
        return self.stages[-1].best

    @property
    def stopped(self) -> str:
        """Why the last stage ended."""
        return self.stages[-1].stopped

    def __str__(self) -> str:
        notes = [f"{type(self.student).__name__}: distilled in {self.seconds:.1f} s"]
        notes += [f"by {self.processes} processes"] if self.processes > 1 else []
        notes += [f"resumed at step {self.resumed}"] if self.resumed is not None else []
        lines = [", ".join(notes), *table([_HEAD, *(stage.row() for stage in self.stages)])]
        errors = {name: pair for stage in self.stages for name, pair in stage.boundaries.items()}
        if errors:
            rows = [(name, f"{first:.4g}", f"{last:.4g}") for name, (first, last) in errors.items()]
            lines += ["", *table([("error at boundary", "first", "last"), *rows])]
        return "\n".join(lines)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """The history as data."""
        stages = [{**asdict(stage), "epochs": stage.epochs, "best": stage.best} for stage in self.stages]
        return {"stages": stages, "seconds": self.seconds, "processes": self.processes, "resumed": self.resumed}
