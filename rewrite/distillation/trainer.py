"""Steps of an optimizer, in the precision and by the processes that there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from rewrite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewrite.distillation.batches import Call
    from rewrite.distillation.distributed import World
    from rewrite.distillation.step import Step
    from rewrite.distillation.weights import Weights

RATE = 1e-3
"""The learning rate where the user gives no optimizer."""


@dataclass(frozen=True)
class Optimization:
    """How weights are trained.

    Attributes:
        optimizer: makes one from the parameters; None for AdamW at :data:`RATE` without decay.
        scheduler: makes one from the optimizer; None for none, or a cosine to zero for the optimizer that is ours.
        clip: the largest norm of all gradients together; None for any.
        autocast: float16 needs its loss scaled.
    """

    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    clip: float | None = None
    autocast: torch.dtype | None = None

    def made(self, parameters: list[nn.Parameter], steps: int | None) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer and scheduler of a stage of so many steps, None where that is not known.

        Raises:
            InputError: the functions give something else.
        """
        if self.optimizer is None:
            optimizer: Any = AdamW(parameters, lr=RATE, weight_decay=0.0)
        else:
            optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, Optimizer):
            raise InputError(
                f"optimizer= gave a {type(optimizer).__name__}; pass a function that makes an optimizer, such as "
                "lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)"
            )
        if self.scheduler is None:
            return optimizer, CosineAnnealingLR(optimizer, steps) if steps and self.optimizer is None else None
        scheduler: Any = self.scheduler(optimizer)
        if not isinstance(scheduler, LRScheduler):
            raise InputError(
                f"scheduler= gave a {type(scheduler).__name__}; pass a function that makes a scheduler, such as "
                "lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)"
            )
        return optimizer, scheduler


class Trainer:
    """The training of one stage.

    Args:
        step: gives the loss of a call.
        weights: what is trained.
        how: optimizer, scheduler and precision.
        steps: how many there will be, where that is known.
        world: the processes.
    """

    def __init__(self, step: Step, weights: Weights, how: Optimization, steps: int | None, world: World):
        self.step, self._weights, self._how, self._world = step, weights, how, world
        self._optimizer, self._scheduler = how.made(weights.parameters, steps)
        self._module = world.wrap(step)
        self._scaler = torch.amp.GradScaler("cuda", enabled=how.autocast is torch.float16)
        self._good: dict[str, Tensor] | None = None

    @property
    def by_validation(self) -> bool:
        """Whether the scheduler waits for losses of a validation."""
        return isinstance(self._scheduler, ReduceLROnPlateau)

    def train(self, call: Call, where: str) -> list[float]:
        """Make one step on a call; the loss and its terms before it, over all processes.

        Args:
            call: the arguments.
            where: which step it is, for messages.

        Raises:
            InputError: the loss or a gradient is not finite; the weights are those of the last finite loss again.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss, parts = self._module(call)
        if not loss.requires_grad:
            raise InputError(
                f"the loss at {where} has no gradients for the student's trainable parameters; train a module whose "
                "forward uses them, such as what rewrite.transform returns"
            )
        numbers = [number / self._world.size for number in self._world.total([loss.item(), *parts.tolist()])]
        if not all(map(math.isfinite, numbers)):
            raise self.diverged(f"the loss is not finite at {where}: {self.step.culprit(call)}")
        self._good = self._weights.copy(self._good)
        self._scaler.scale(loss).backward()
        self._update(where)
        return numbers

    def _update(self, where: str) -> None:
        self._scaler.unscale_(self._optimizer)
        parameters = [parameter for parameter in self._weights.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not self._scaler.is_enabled() and not math.isfinite(norm):
            raise self.diverged(f"the norm of the gradients is not finite at {where}")
        if self._how.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._how.clip, norm)
        self._scaler.step(self._optimizer)
        before = self._scaler.get_scale()
        self._scaler.update()
        skipped = self._scaler.get_scale() < before  # the gradients overflowed in float16
        if self._scheduler is not None and not self.by_validation and not skipped:
            self._scheduler.step()

    def validated(self, loss: float) -> None:
        """Tell a scheduler that waits for it the loss of a validation."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss)

    def require_finite(self, where: str) -> None:
        """Check the weights after a step, which nothing has been computed with.

        Raises:
            InputError: some are not finite; the weights are those of the last finite loss again.
        """
        if not self._weights.finite:
            raise self.diverged(f"the student's weights are not finite after {where}")

    def diverged(self, what: str) -> InputError:
        """Put back the weights of the last finite loss, and say so."""
        if self._good is not None:
            self._weights.restore(self._good)
        return InputError(
            f"{what}; the student has the weights of the last finite loss; leave out batches that are not finite, or "
            "pass an optimizer with a lower rate, clip=1.0, or autocast=None"
        )

    def finish(self) -> None:
        """Leave no gradients, and no hooks of the wrapper."""
        self._world.release(self._module)
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What goes on where it was, as data."""
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return {"optimizer": self._optimizer.state_dict(), "scheduler": scheduler, "scaler": self._scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where a state was."""
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None and state["scheduler"] is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
