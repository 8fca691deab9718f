"""Whether tensors hold infinities or NaN."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether all elements are certainly finite: their sum is. Sums of large ones may not be."""
    total = values.sum() if values.is_complex() else values.sum(dtype=torch.float64)
    return bool(torch.isfinite(total))
