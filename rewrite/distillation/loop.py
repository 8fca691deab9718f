"""Stages, epochs and validations, in an order that a checkpoint can be taken from and gone on with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.distillation import randomness
from rewrite.distillation.borrowing import evaluated
from rewrite.distillation.history import Stage
from rewrite.distillation.trainer import Trainer
from rewrite.errors import ArtifactError, InputError
from rewrite.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from rewrite.distillation.batches import Batches, Call
    from rewrite.distillation.checkpoint import Checkpoint
    from rewrite.distillation.distributed import World
    from rewrite.distillation.step import Step
    from rewrite.distillation.trainer import Optimization
    from rewrite.distillation.weights import Weights


@dataclass(frozen=True)
class Planned:
    """A stage to come: its name, the loss, and so many epochs or steps."""

    name: str
    step: Step
    number: int
    unit: str

    def steps(self, length: int | None) -> int | None:
        """How many steps it has, where that is known, with so many batches in an epoch."""
        return self.number if self.unit == "steps" else None if length is None else self.number * length


@dataclass(frozen=True)
class Held:
    """The held-out batches.

    Attributes:
        batches: None for none.
        every: so many steps they are looked at; None for after each epoch.
        patience: how many times in a row they may show nothing better; None for ever.
    """

    batches: Batches | None = None
    every: int | None = None
    patience: int | None = None


@dataclass
class Place:
    """Where a training is: in which stage, in which of its epochs, and how many of the batches it has seen."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0


class Loop:
    """Trains a student, stage by stage.

    Args:
        weights: of the student.
        plan: the stages.
        batches: what it is trained on.
        held: what it is judged by.
        how: optimizer, scheduler and precision.
        checkpoint: where the state is kept.
        world: the processes.
    """

    def __init__(
        self,
        weights: Weights,
        plan: list[Planned],
        batches: Batches,
        held: Held,
        how: Optimization,
        checkpoint: Checkpoint,
        world: World,
    ):
        self._weights, self._plan, self._batches, self._held = weights, plan, batches, held
        self._how, self._checkpoint, self._world = how, checkpoint, world
        self.stages: list[Stage] = []
        self.resumed: int | None = None
        self._place = Place()
        self._start: dict[str, Any] = {}  # the random numbers before the first batch of this epoch
        self._best: dict[str, Tensor] | None = None
        self._loaded: dict[str, Any] | None = None

    # -- the whole ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool) -> None:
        """Train.

        Args:
            resume: whether to go on from the checkpoint where there is one.
        """
        if resume:
            self._resume()
        while self._place.stage < len(self._plan):
            planned = self._plan[self._place.stage]
            if len(self.stages) == self._place.stage:
                self.stages.append(Stage(planned.name))
            self._train_stage(planned)

    def _train_stage(self, planned: Planned) -> None:
        total = planned.steps(self._batches.length)
        self._trainer = Trainer(planned.step, self._weights, self._how, total, self._world)
        progress = Progress(f"distilling {planned.name}")
        try:
            self._begin()
            while not self._reason():
                for _ in self._epoch():
                    if self._world.first and total and self._stage_steps < total:
                        progress(self._stage_steps, total)
            self._trainer.require_finite(self._where)
            if self._held.batches is not None and self._stage.validation[-1][0] != self._stage_steps:
                self._validate()
        finally:
            self._trainer.finish()
            if self._world.first and total:
                progress(total, total)
        self._end()

    def _begin(self) -> None:
        """Go on where a checkpoint was, or look at the held-out batches before the first step."""
        if self._trainer.by_validation and self._held.batches is None:
            raise InputError("ReduceLROnPlateau waits for losses of a validation; pass validation=")
        if self._loaded is not None:
            if self._loaded["training"] is not None:
                self._trainer.load(self._loaded["training"])
            randomness.draw_again(self._loaded["random"][self._world.rank], self._batches, self._world.device)
        if self._held.batches is not None and not self._stage.validation:
            self._validate()

    def _end(self) -> None:
        """Close a stage; the next one begins with its best weights."""
        self._stage.stopped = self._reason()
        if self._best is not None:
            self._weights.restore(self._best)
        self._best, self._loaded = None, None
        self._place = Place(self._place.stage + 1)
        self._save(training=False)

    # -- a stage ------------------------------------------------------------------------------------------------------

    @property
    def _stage(self) -> Stage:
        return self.stages[-1]

    @property
    def _stage_steps(self) -> int:
        return len(self._stage.losses)

    @property
    def _where(self) -> str:
        return f"step {self._stage_steps} of stage '{self._stage.name}'"

    def _reason(self) -> str:
        """Why the stage is over; empty while it is not."""
        planned, patience = self._plan[self._place.stage], self._held.patience
        done = self._stage_steps if planned.unit == "steps" else self._place.epoch
        if done >= planned.number:
            return f"after {planned.number} {planned.unit if planned.number != 1 else planned.unit[:-1]}"
        if patience is not None and self._stage.waited >= patience:
            return f"nothing better in {patience} validation{'s' if patience != 1 else ''}"
        return ""

    def _epoch(self) -> Iterator[None]:
        """One epoch, or what is left of it; stops after each step."""
        for call in self._calls():
            self._step(call)
            yield
            if self._reason():
                return
        if self._place.batch == 0:
            raise InputError(self._nothing())
        self._place = Place(self._place.stage, self._place.epoch + 1)
        if self._held.batches is not None and self._held.every is None:
            self._validate()
        if self._checkpoint.after_epochs and not self._reason():
            self._save()

    def _calls(self) -> Iterator[Call]:
        """The calls of this epoch that have not been seen, with the random numbers that belong to them."""
        device, place = self._world.device, self._place
        if place.batch == 0:
            if self._batches.sharded:
                randomness.align(self._batches, self._world.share, device)
            self._start = randomness.drawn(self._batches, device)
            self._stage.starts.append(self._stage_steps)
        number = sum(len(stage.starts) for stage in self.stages) - 1
        calls, loaded, self._loaded = self._batches.epoch(number), self._loaded, None
        if place.batch and loaded is not None:  # only a checkpoint is taken within an epoch
            randomness.draw_again(self._start, self._batches, device)
            for _ in range(place.batch):
                if next(calls, None) is None:
                    raise ArtifactError(
                        f"batches has fewer than the {place.batch} batches that the checkpoint has seen; pass the same "
                        "ones, or resume=False"
                    )
            randomness.draw_again(loaded["random"][self._world.rank], self._batches, device)
        return calls

    def _step(self, call: Call) -> None:
        stage = self._stage
        where = f"step {self._stage_steps + 1} of stage '{stage.name}'"
        loss, *parts = self._trainer.train(call, where)
        stage.losses.append(loss)
        self._place.batch += 1
        if stage.name == "blocks":
            last: dict[str, float] = {}
            for name, part in zip(self._trainer.step.names, parts, strict=True):
                last[name] = last.get(name, 0.0) + part
            stage.boundaries = {name: (stage.boundaries.get(name, (part,))[0], part) for name, part in last.items()}
        if self._held.every is not None and self._stage_steps % self._held.every == 0:
            self._validate()
        if self._checkpoint.due(self._stage_steps):
            self._save()

    def _nothing(self) -> str:
        if self._batches.once and self._stage_steps:
            return (
                f"batches is an iterator, which ended after {self._stage_steps} steps and cannot begin again; pass a "
                "list or a loader, or fewer steps"
            )
        shared = f" for each of {self._world.size} processes" if self._world.size > 1 else ""
        return f"batches holds no batch{shared}; pass at least one"

    def _validate(self) -> None:
        """Look at the held-out batches, and keep the weights if they are the best so far."""
        held = self._held.batches
        assert held is not None
        self._trainer.require_finite(self._where)
        if held.sharded:
            randomness.align(held, self._world.share, self._world.device)
        losses = []
        with evaluated(self._trainer.step.student), torch.no_grad():
            for call in held.epoch(0, ragged=True):
                losses.append(self._trainer.step(call, together=False)[0].item())
        total, count = self._world.total([sum(losses), float(len(losses))])
        if not count:
            raise InputError("validation holds no batch; pass at least one, or None")
        loss = total / count
        if not math.isfinite(loss):
            raise self._trainer.diverged(f"the loss of the validation after {self._where} is not finite")
        self._stage.validation.append((self._stage_steps, loss))
        if self._stage.waited == 0:
            self._best = self._weights.copy(self._best)
        self._trainer.validated(loss)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self, training: bool = True) -> None:
        if self._checkpoint.path is None:
            return
        if training:
            self._trainer.require_finite(self._where)
        device = self._world.device
        state = {
            "place": asdict(self._place),
            "stages": [asdict(stage) for stage in self.stages],
            "weights": self._weights.values,
            "best": self._best,
            "training": self._trainer.state() if training else None,
            "random": self._world.collect(randomness.drawn(self._batches, device)),
            "start": self._world.collect(self._start),
        }
        self._checkpoint.save(state)

    def _resume(self) -> None:
        state = self._checkpoint.load()
        if state is None:
            return
        self._weights.restore(state["weights"])
        self._place = Place(**state["place"])
        self.stages = [Stage(**stage) for stage in state["stages"]]
        self._best = None if state["best"] is None else self._weights.beside(state["best"])
        self._start = state["start"][self._world.rank]
        self._loaded = state
        self.resumed = sum(len(stage.losses) for stage in self.stages)
