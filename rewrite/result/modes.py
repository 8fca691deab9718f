"""Doing work for a caller without the caller's modes."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

import torch

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def neutral(autocast: bool = False) -> Iterator[None]:
    """No autograd, no inference tensors and, unless asked for, no autocast."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        if not autocast and compat.is_any_autocast():
            for kind in compat.device_kinds():
                modes.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: one walks over all that torch has loaded, which takes a quarter of a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
