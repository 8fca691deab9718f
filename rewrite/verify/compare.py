"""Judging one output of the new fragment against the old one and a float64 reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewrite.finite import all_finite
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from collections.abc import Sequence

MARGIN = 2.0
"""How much worse than the old fragment, or than the floor, the new one may be."""


@dataclass(frozen=True)
class Finding:
    """What a comparison found.

    Attributes:
        failure: where and by how much the outputs differ; '' where they agree.
        error: the largest error as a fraction of what is allowed.
        evidence: whether any finite value was compared.
    """

    failure: str = ""
    error: float = 0.0
    evidence: bool = True


def same_kind(name: str, old: object, new: object) -> str:
    """How the types of two outputs differ; '' where they agree."""
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)) and len(old) == len(new):
        items = (same_kind(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True)))
        return next(filter(None, items), "")
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        agree = not isinstance(old, Tensor) and not isinstance(new, Tensor) and old == new
        return "" if agree else f"output '{name}' is {_kind(new)}, not {_kind(old)}"
    if old.dtype != new.dtype or old.shape != new.shape or old.device != new.device:
        return f"output '{name}' is {_kind(new)}, not {_kind(old)}"
    return ""


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{where}"
    return repr(value)


def equal(name: str, old: Tensor, new: Tensor, reach: Sequence[int]) -> Finding:
    """Whether two tensors hold the same values, NaN equal to NaN and the zeros of both signs equal."""
    wrong = (old != new) & ~((old != old) & (new != new))
    if not bool(wrong.any()):
        return Finding()
    at = _first(wrong)
    return Finding(
        f"output '{name}' is not equal{_where(wrong, at, reach)}: {new[at].item()} instead of {old[at].item()}", 1.0
    )


def close(
    name: str,
    fidelity: Fidelity,
    new: Tensor,
    old: Tensor,
    reference: Tensor,
    floor: Tensor,
    reach: Sequence[int],
) -> Finding:
    """Whether ``|new - reference| <= MARGIN * max(|old - reference|, floor)``.

    Element by element; for NORMWISE the Euclidean norms over each plane of a batch row and channel.

    Args:
        name: of the output, for the message.
        fidelity: ELEMENTWISE or NORMWISE.
        new, old: the outputs as computed.
        reference: the old fragment in float64.
        floor: for each element, the error that is allowed whatever old does.
        reach: distance from an edge that counts as border, for each spatial dimension.
    """
    if not reference.is_floating_point() and not reference.is_complex():
        return equal(name, old, new, reach)
    # most tensors are finite throughout, and large: then one pass over each does
    if reference.numel() and all(map(all_finite, (new, old, reference, floor))):
        return _judged(name, fidelity, _distance(new, reference), _distance(old, reference), floor, reach)
    known = torch.isfinite(reference) & torch.isfinite(old)
    lost = known & ~torch.isfinite(new)
    if bool(lost.any()):
        at = _first(lost)
        return Finding(
            f"output '{name}' is {new[at].item()} where the model's is finite{_where(lost, at, reach)}", float("inf")
        )
    # where everything would be allowed, nothing is shown
    known &= torch.isfinite(floor)
    if not bool(known.any()):
        return Finding(evidence=reference.numel() == 0)
    error, allowed = (torch.where(known, _distance(side, reference), 0.0) for side in (new, old))
    return _judged(name, fidelity, error, allowed, torch.where(known, floor, 0.0), reach)


def _judged(
    name: str, fidelity: Fidelity, error: Tensor, allowed: Tensor, floor: Tensor, reach: Sequence[int]
) -> Finding:
    """Whether an error is within what is allowed, both without infinities; ``error`` and ``allowed`` are used up."""
    if fidelity is Fidelity.NORMWISE:
        error, allowed, floor = (_plane_norm(values) for values in (error, allowed, floor))
    bound = torch.maximum(allowed, floor).mul_(MARGIN)
    wrong = error > bound
    if not bool(wrong.any()):
        return Finding(error=float(error.div_(bound).nan_to_num_(0.0).max()))
    ratio = torch.where(error > 0, error / bound, 0.0)
    at = _position(int(ratio.argmax()), ratio.shape)
    return Finding(
        f"output '{name}' differs{_where(wrong, at, reach)}: error {float(error[at]):.2e}, allowed "
        f"{float(bound[at]):.2e}",
        float(ratio.max()),
    )


def _distance(values: Tensor, reference: Tensor) -> Tensor:
    return torch.sub(values, reference).abs()


def _plane_norm(values: Tensor) -> Tensor:
    """The norm over all but the first two dimensions, over the last one of a matrix; dimensions stay as size one."""
    dims = tuple(range(2, values.dim())) if values.dim() > 2 else (-1,)
    return torch.linalg.vector_norm(values, dim=dims, keepdim=True) if values.dim() else values.abs()


def _first(wrong: Tensor) -> tuple[int, ...]:
    return _position(int(wrong.flatten().int().argmax()), wrong.shape)


def _position(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    position = []
    for size in reversed(shape):
        flat, index = divmod(flat, size)
        position.append(index)
    return tuple(reversed(position))


def _where(wrong: Tensor, at: tuple[int, ...], reach: Sequence[int]) -> str:
    """The worst place in words, and how the wrong elements are spread."""
    text = f" in {int(wrong.sum())} of {wrong.numel()} elements"
    if wrong.dim() < 2:
        return f"{text} (first at {at[0]})" if at else ""
    others = [dim for dim in range(wrong.dim()) if dim != 1]
    channels = int(wrong.sum(others).count_nonzero())
    text += f" and {channels} of {wrong.shape[1]} channels"
    text += f", worst in row {at[0]} of the batch, channel {at[1]}"
    if wrong.dim() > 2 and max(wrong.shape[2:]) > 1:
        text += f", position {at[2:]}"
        inside = _interior(wrong, reach)
        if inside is not None:
            text += ", at the border only" if not bool(inside.any()) else ", in the interior too"
    return text


def _interior(wrong: Tensor, reach: Sequence[int]) -> Tensor | None:
    for dim, width in zip(range(2, wrong.dim()), reach, strict=False):
        size = wrong.shape[dim]
        if size <= 2 * width:
            return None
        wrong = wrong.narrow(dim, width, size - 2 * width)
    return wrong
