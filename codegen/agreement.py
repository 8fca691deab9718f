"""Whether a runtime computes what torch computes: outputs compared before an executable is trusted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def tolerance(dtype: torch.dtype) -> float:
    """The allowed error relative to the largest output: half of the digits of a floating dtype, 0 for integers."""
    return math.sqrt(torch.finfo(dtype).eps) if dtype.is_floating_point or dtype.is_complex else 0.0


FLIPPED = 1e-3
"""The share of integers and truth values of an output that may differ: rounding decides on those of near ties."""


def disagreement(found: Sequence[Any], expected: Sequence[Any]) -> str:
    """Where and by how much flat outputs differ; '' where they agree.

    NaN agrees with NaN and an infinity with itself. Errors are relative to the largest finite value of an output.
    """
    if len(found) != len(expected):
        return f"gives {len(found)} outputs in place of {len(expected)}"
    for i, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        text = _difference(value, wanted)
        if text:
            return f"gives another output {i}: {text}"
    return ""


def _difference(value: Any, wanted: Any) -> str:
    if not isinstance(wanted, Tensor) or not isinstance(value, Tensor):
        same = type(value) is type(wanted) and value == wanted
        return "" if same else f"{value!r} in place of {wanted!r}"
    if (value.shape, value.dtype) != (wanted.shape, wanted.dtype):
        return f"{value.dtype} {list(value.shape)} in place of {wanted.dtype} {list(wanted.shape)}"
    if value.stride() != wanted.stride():
        return f"strides {value.stride()} in place of {wanted.stride()}"
    if wanted.is_complex():
        value, wanted = torch.view_as_real(value.resolve_conj()), torch.view_as_real(wanted.resolve_conj())
    if not wanted.dtype.is_floating_point:
        wrong = int((value != wanted).sum())
        return f"{wrong} of {wanted.numel()} values differ" if wrong > FLIPPED * wanted.numel() else ""
    known = torch.isfinite(wanted)
    lost = int((~torch.isclose(value[~known], wanted[~known], equal_nan=True)).sum()) + int(
        (~torch.isfinite(value[known])).sum()
    )
    if lost:
        return f"{lost} of {wanted.numel()} values are NaN or infinite on one side only"
    if not bool(known.any()):
        return ""
    error = float((value[known].double() - wanted[known].double()).abs().max())
    allowed = tolerance(wanted.dtype) * float(wanted[known].double().abs().max())
    if error <= allowed:
        return ""
    return f"the error is {error:.2e}, and {allowed:.2e} is allowed"
