"""One step: student, teacher and loss in one module, so that it can be wrapped as a whole."""

from __future__ import annotations

import contextlib
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.finite import all_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewrite.distillation.batches import Call
    from rewrite.distillation.distributed import World
    from rewrite.distillation.losses import Term
    from rewrite.distillation.observing import Reader


class Step(nn.Module):
    """The loss of a call; only the student is registered, so that nothing of the teacher is trained or broadcast.

    Args:
        student: the module that is trained.
        readers: what reads the values of student and teacher that are compared.
        compare: gives the terms of the loss from both values.
        world: the processes over which energies are the mean, so that the loss is that of all their batches.
        autocast: the precision of both modules; None for their own.
    """

    def __init__(
        self,
        student: nn.Module,
        readers: tuple[Reader, Reader],
        compare: Callable[[Any, Any], list[Term]],
        world: World,
        autocast: torch.dtype | None,
    ):
        super().__init__()
        self.student = student
        self._read, self._teach = readers
        self._compare, self._world, self._autocast = compare, world, autocast
        self.names: tuple[str, ...] = ()
        """Of the terms of the last call."""

    def forward(self, call: Call, together: bool = True) -> tuple[Tensor, Tensor]:
        """The loss, and the terms whose sum it is, without gradients.

        Args:
            call: the arguments.
            together: whether all processes are in this call.
        """
        with self._precision():
            with torch.no_grad():
                expected = self._teach(call)
            terms = self._compare(self._read(call), expected)
        self.names = tuple(term.name for term in terms)
        energies = _stacked([term.energy for term in terms])
        parts = _stacked([term.error for term in terms]) / (self._world.mean(energies) if together else energies)
        return parts.sum(), parts.detach()

    def culprit(self, call: Call) -> str:
        """Whose values are not finite, as a sentence."""
        with torch.no_grad(), self._precision():
            if not _finite(self._teach(call)):
                return "the teacher's values are not finite"
            if not _finite(self._read(call)):
                return "the student's values are not finite"
        return "the values of both are, so it is the loss function or another process"

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._world.device.type, dtype=self._autocast)


def _stacked(numbers: list[Tensor]) -> Tensor:
    kind = reduce(torch.promote_types, (number.dtype for number in numbers))
    return torch.stack([number.to(kind) for number in numbers])


def _finite(value: Any) -> bool:
    leaves = compat.tree_flatten(value)[0]
    return all(all_finite(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
