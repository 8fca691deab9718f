"""How far values are from others, in one number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence


def distance(found: Tensor, truth: Tensor) -> float | None:
    """The norm of the difference relative to the norm of ``truth``, where that is finite; None without any.

    Infinite where ``truth`` is finite and ``found`` is not.
    """
    values = torch.stack([evaluate.lift(found), evaluate.lift(truth)])
    if bool((torch.isfinite(values[1]) & ~torch.isfinite(values[0])).any()):
        return math.inf
    found, truth = values[:, torch.isfinite(values).all(0)]
    norm = float(truth.norm())
    return float((found - truth).norm()) / norm if norm > 0 else None


def farthest(found: Sequence[Any], truths: Sequence[Any]) -> float | None:
    """The largest distance of all floating tensors among values; None where none is known."""
    pairs = zip(found, truths, strict=True)
    known = [
        distance(value, truth)
        for value, truth in pairs
        if isinstance(value, Tensor) and isinstance(truth, Tensor) and value.shape == truth.shape
        and (value.is_floating_point() or value.is_complex())
    ]  # fmt: skip
    return max((each for each in known if each is not None), default=None)
