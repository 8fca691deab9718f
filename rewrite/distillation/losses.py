r"""How far a student is from its teacher, in one number that has gradients.

.. math:: \frac{\sum (s - t)^2}{\sum t^2} \qquad\text{and}\qquad T^2 \, KL(softmax(t / T) \| softmax(s / T))

The first is the mean squared error relative to the teacher's energy, so that values of every size count the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rewrite import compat
from rewrite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Term(NamedTuple):
    """A part of a loss, ``error / energy``; the energy is a number of the teacher, over all processes its mean."""

    name: str
    error: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Boundaries:
    """The error at each boundary inside a model; its values may be tensors or containers of them."""

    def __call__(self, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Term]:
        """The terms, one for each tensor."""
        return [
            _squared(name, *pair)
            for name, value in student.items()
            for pair in _pairs(f"at boundary '{name}'", value, teacher[name])
        ]


@dataclass(frozen=True)
class Outputs:
    """The error of outputs: ``"kl"`` for logits, tensors of two dimensions, and ``"mse"`` for all others.

    Attributes:
        kind: ``"mse"``, ``"kl"``, or a function of both outputs.
        temperature: what divides the logits.
    """

    kind: str | Callable[[Any, Any], Tensor]
    temperature: float

    def __call__(self, student: Any, teacher: Any) -> list[Term]:
        """The terms, one for each tensor."""
        if not isinstance(self.kind, str):
            return [_custom(self.kind(student, teacher))]
        pairs = _pairs("in the output", student, teacher)
        return [
            self._logits(*pair) if self.kind == "kl" and pair[0].dim() == 2 else _squared("output", *pair)
            for pair in pairs
        ]

    def _logits(self, student: Tensor, teacher: Tensor) -> Term:
        ours, theirs = (functional.log_softmax(logits / self.temperature, dim=1) for logits in (student, teacher))
        error = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return Term("output", error, torch.ones_like(error))


def _squared(name: str, student: Tensor, teacher: Tensor) -> Term:
    energy = teacher.square().mean()
    return Term(name, (student - teacher).square().mean(), torch.where(energy > 0, energy, 1))


def _custom(loss: Any) -> Term:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"loss gave {given}; let it return a tensor of one element, such as the mean")
    loss = loss.reshape(())
    return Term("output", loss, torch.ones_like(loss))


def _pairs(where: str, student: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
    """The floating-point tensors of both sides, in float32 or more; complex ones as pairs of real numbers."""
    ours, spec = compat.tree_flatten(student)
    theirs, other = compat.tree_flatten(teacher)
    if spec != other or [isinstance(leaf, Tensor) for leaf in ours] != [isinstance(leaf, Tensor) for leaf in theirs]:
        raise InputError(
            f"{where} the student gives {_described(student)} and the teacher {_described(teacher)}; both have to give "
            "the same structure, or pass loss= a function of both outputs"
        )
    found = []
    for one, two in zip(ours, theirs, strict=True):
        if not isinstance(one, Tensor) or not (one.is_floating_point() or one.is_complex()):
            continue
        if one.shape != two.shape:
            raise InputError(
                f"{where} the student's tensor has shape {tuple(one.shape)} and the teacher's {tuple(two.shape)}; name "
                "places whose shapes agree"
            )
        found.append((_real(one), _real(two)))
    if not found:
        raise InputError(
            f"{where} are no floating-point tensors, but {_described(student)}; let it hold tensors, or pass loss= a "
            "function of both outputs"
        )
    return found


def _real(value: Tensor) -> Tensor:
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _described(value: Any) -> str:
    """``a tuple of 2``, ``a dict of a, b``, ``a Tensor``."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
