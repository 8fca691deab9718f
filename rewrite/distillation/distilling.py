"""``distill``: a student learns to compute what its teacher computes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rewrite.distillation.batches import Batches
from rewrite.distillation.borrowing import borrowed, require_apart
from rewrite.distillation.checkpoint import Checkpoint
from rewrite.distillation.distributed import joined
from rewrite.distillation.history import Distilled
from rewrite.distillation.loop import Held, Loop, Planned
from rewrite.distillation.losses import Boundaries, Outputs
from rewrite.distillation.observing import Called, readers, source_of
from rewrite.distillation.step import Step
from rewrite.distillation.trainer import Optimization
from rewrite.distillation.weights import Weights
from rewrite.errors import InputError
from rewrite.names import nearest
from rewrite.trace import unwrap

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from rewrite.distillation.distributed import World
    from rewrite.distillation.observing import Reader

_LOSSES = ("kl", "mse")
_PRECISIONS = (torch.bfloat16, torch.float16, None)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    boundaries: Mapping[str, str] | Sequence[str] | None = None,
    blocks: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    loss: Literal["mse", "kl"] | Callable[[Any, Any], Tensor] = "mse",
    temperature: float = 2.0,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    autocast: torch.dtype | None = None,
    clip: float | None = None,
    validation: Iterable[Any] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    resume: bool = True,
) -> Distilled:
    """Train a student to compute what its teacher computes, block by block and then end to end.

    The student is trained in place, in the mode that it is in: in evaluation mode batch norms keep their statistics.
    The teacher is read only: it runs in evaluation mode without gradients, and modes, buffers and hooks are as before
    afterwards. Batches are moved to the student's device.

    Block by block means that each boundary inside the student is to have the teacher's value, all at once: the loss is
    the sum over boundaries of the mean squared error relative to the teacher's energy. A block of the student reads
    what the student's own blocks before it give, not the teacher's values, so it learns to undo their errors too.

    Under torchrun, or where ``torch.distributed`` is initialized, the processes train together, as
    DistributedDataParallel does. The process of rank r takes every size-th batch, from r on, of a loader that has no
    sampler for several processes; an incomplete last round is left out. Only rank 0 writes checkpoints, and all end
    with the same weights.

    Args:
        student: the module to train; its parameters with ``requires_grad`` are trained.
        teacher: a module with the same call, which shares no trained parameter with the student. A result of
            :func:`rewrite.optimize` is one too.
        batches: what to train on: a loader, a list, anything that can be iterated over again and gives tensors, tuples
            or lists of positional arguments, or dicts of keyword arguments. An iterator does for one epoch of one
            stage.
        inputs: gives the arguments from a batch, such as ``lambda batch: batch[0]`` for pairs with labels.
        boundaries: paths of submodules that both have, or a dict from the student's to the teacher's; their outputs
            are compared. For a student that is :class:`~rewrite.distillation.Observable` names of its own; its default
            is all of these.
        blocks: epochs, or steps where ``steps`` is given, of the stage over boundaries; 0 to leave it out. Default: as
            many as end to end, where there are boundaries.
        epochs, steps: how long to train end to end, in one of both; default: one epoch.
        loss: end to end: ``"mse"``, relative to the teacher's energy; ``"kl"``, the divergence of outputs that are
            tensors of two dimensions (logits), with ``"mse"`` for the others; or a function of the student's and the
            teacher's output.
        temperature: divides the logits for ``"kl"``; the loss is multiplied by its square.
        optimizer: makes one from the list of parameters, for each stage anew. Default: AdamW at 1e-3 without decay,
            with a cosine to zero if ``scheduler`` is not given and the number of steps is known.
        scheduler: makes one from the optimizer; it steps after each step, ``ReduceLROnPlateau`` after each validation.
        autocast: ``torch.bfloat16``, or ``torch.float16`` on CUDA, where losses are scaled, for both modules.
        clip: the largest norm of the gradients.
        validation: held-out batches, of the same form; each stage ends with the weights that were best on these.
        validate_every: so many steps they are looked at; default: after each epoch. They are before the first step too.
        patience: a stage ends after so many validations with nothing better.
        checkpoint: a file for the state, which ``torch.load(..., weights_only=True)`` reads. With the same arguments
            training goes on from it, to the same bits as without an interruption where the batches are the same ones.
        every: so many steps it is written, and after each stage; default: after each epoch.
        resume: whether to go on from a checkpoint that is there, or to begin anew and overwrite it.

    Returns:
        The student and the history of losses, which prints.

    Raises:
        InputError: an argument, batch or boundary does not fit, or a loss is not finite; the message says at which
            step, and the student has the weights of the last finite loss.
        ArtifactError: a checkpoint that cannot be read, or is of another training.
    """
    began = time.perf_counter()
    student, teacher = unwrap(student), unwrap(teacher)
    number, unit = _amount(epochs, steps)
    _require(blocks=(blocks, 0), clip=(clip, None), validate_every=(validate_every, 1), patience=(patience, 1),
             every=(every, 1), temperature=(temperature, None))  # fmt: skip
    _require_together(
        patience=(patience, "validation", validation),
        validate_every=(validate_every, "validation", validation),
        every=(every, "checkpoint", checkpoint),
    )
    if not callable(loss) and loss not in _LOSSES:
        raise InputError(f"loss={loss!r} is unknown{nearest(str(loss), _LOSSES)}")
    weights = Weights(student)
    device = weights.parameters[0].device
    _require_precision(autocast, device)
    found = readers(student, teacher, boundaries)
    blocks = _blocks(blocks, number, unit, found is not None)
    source = source_of(student, teacher)
    teachers = (teacher,) if source is None or source is teacher else (teacher, source)
    require_apart(student, *teachers)
    settings = {
        "blocks": blocks, "unit": unit, "number": number, "temperature": temperature, "patience": patience,
        "loss": loss if isinstance(loss, str) else "a function", "validate_every": validate_every,
        "boundaries": None if boundaries is None else list(boundaries), "autocast": str(autocast),
    }  # fmt: skip
    how = Optimization(optimizer, scheduler, clip, autocast)
    with joined(device) as world, borrowed(*teachers):
        plan = _plan(student, teacher, found, blocks, number, unit, Outputs(loss, temperature), world, autocast)
        takers = {"student": student, "teacher": teacher}
        trained = Batches(batches, inputs, world, "batches", takers)
        held = None if validation is None else Batches(validation, inputs, world, "validation", takers)
        _require_again(trained, held, blocks, number, unit)
        kept = Checkpoint(checkpoint, every, world, {**settings, "processes": world.size})
        loop = Loop(weights, plan, trained, Held(held, validate_every, patience), how, kept, world)
        loop.run(resume)
        world.align(student)
    return Distilled(student, tuple(loop.stages), time.perf_counter() - began, world.size, loop.resumed)


def _plan(
    student: nn.Module,
    teacher: nn.Module,
    found: tuple[Reader, Reader] | None,
    blocks: int,
    number: int,
    unit: str,
    outputs: Outputs,
    world: World,
    autocast: torch.dtype | None,
) -> list[Planned]:
    """The stages that have something to do."""
    plan = []
    if found is not None and blocks:
        plan.append(Planned("blocks", Step(student, found, Boundaries(), world, autocast), blocks, unit))
    if number:
        ends = (Called(student), Called(teacher))
        plan.append(Planned("outputs", Step(student, ends, outputs, world, autocast), number, unit))
    return plan


def _amount(epochs: int | None, steps: int | None) -> tuple[int, str]:
    """How long to train end to end."""
    _require(epochs=(epochs, 0), steps=(steps, 0))
    if epochs is not None and steps is not None:
        raise InputError(f"epochs={epochs} and steps={steps} are both given; pass one of them")
    return (steps, "steps") if steps is not None else (1 if epochs is None else epochs, "epochs")


def _blocks(blocks: int | None, number: int, unit: str, there: bool) -> int:
    """How long to train block by block."""
    if blocks and not there:
        raise InputError(f"blocks={blocks} needs boundaries inside the student; pass boundaries=, or blocks=0")
    blocks = (number if there else 0) if blocks is None else blocks
    if not blocks and not number:
        raise InputError(f"{unit}=0 leaves nothing to train; pass a larger number, or blocks= with boundaries=")
    return blocks


def _require(**numbers: tuple[float | None, int | None]) -> None:
    """Check numbers against the least whole number that is allowed; None for any positive number."""
    for name, (given, least) in numbers.items():
        value: Any = given
        if value is None:
            continue
        kinds = (int, float) if least is None else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds):
            fits = False
        else:
            fits = value >= least if least is not None else value > 0
        if not fits:
            what = "a positive number" if least is None else f"a whole number, {least} or more"
            raise InputError(f"{name}={value!r} does not fit; pass {what}")


def _require_together(**options: tuple[Any, str, Any]) -> None:
    for name, (value, needed, other) in options.items():
        if value is not None and other is None:
            raise InputError(f"{name}={value!r} needs {needed}=; pass both or none")


def _require_precision(autocast: torch.dtype | None, device: torch.device) -> None:
    if autocast not in _PRECISIONS:
        raise InputError(f"autocast={autocast!r} is no lower precision; pass torch.bfloat16, torch.float16 or None")
    if autocast is torch.float16 and device.type != "cuda":
        raise InputError(
            f"autocast=torch.float16 loses small gradients on {device}, where losses are not scaled; pass "
            "torch.bfloat16"
        )


def _require_again(batches: Batches, held: Batches | None, blocks: int, number: int, unit: str) -> None:
    """Check that what is read more than once can be."""
    stages = (blocks > 0) + (number > 0)
    if batches.once and (stages > 1 or (unit == "epochs" and blocks + number > 1)):
        raise InputError(
            "batches is an iterator, which can be read once, and is needed for "
            f"{blocks + number} {unit} in {stages} stage{'s' if stages > 1 else ''}; pass a list or a loader"
        )
    if held is not None and held.once:
        raise InputError("validation is an iterator, which can be read once; pass a list or a loader")
