"""Switching off what computes in less precision than the dtype says."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextmanager
def full_precision(values: Iterable[Any]) -> Iterator[None]:
    """Without TF32, where one of the values is on a CUDA device: no bound knows a float32 of ten bits."""
    if not any(isinstance(value, Tensor) and value.is_cuda for value in values):
        yield
        return
    cudnn: Any = torch.backends.cudnn
    settings = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
