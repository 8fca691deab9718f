"""The surroundings of capture: random numbers, grad mode, autocast, warnings and logs, all put back at the end."""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.alone import alone

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# These print whole programs before they raise what capture translates.
_TALKATIVE = ("torch.fx.experimental.symbolic_shapes", "torch._export", "torch.export", "torch._dynamo")


@contextlib.contextmanager
def isolated(model: nn.Module, tensors: Iterable[Tensor] = (), exclusive: bool = True) -> Iterator[None]:
    """Run with plain settings, whatever the caller's are, and leave no trace in generators, warnings and logs.

    Args:
        model: what is run.
        tensors: what it works on besides its parameters and buffers.
        exclusive: one thread at a time, for warnings, log levels and exports are the whole process's. Not under a lock
            that another thread may want within, as that of Dynamo.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers(), *tensors)}
    kinds = {"cpu", *(device.type for device in devices)}
    with contextlib.ExitStack() as stack:
        if exclusive:
            stack.enter_context(alone)
        stack.enter_context(torch.random.fork_rng(devices=_cuda_indices(devices)))
        stack.enter_context(_python_generators())
        stack.enter_context(torch.inference_mode(False))
        # what is traced of regions without grad must not depend on the caller's mode
        stack.enter_context(torch.enable_grad())
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_quiet())
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    saved = [(logger, logger.level) for logger in map(logging.getLogger, _TALKATIVE)]
    for logger, _ in saved:
        logger.setLevel(logging.CRITICAL)
    try:
        with compat.without_partial_graphs():
            yield
    finally:
        for logger, level in saved:
            logger.setLevel(level)


@contextlib.contextmanager
def _python_generators() -> Iterator[None]:
    saved = foreign_state()
    try:
        yield
    finally:
        random.setstate(saved[0])
        if saved[1] is not None:
            sys.modules["numpy"].random.set_state(saved[1])


def foreign_state() -> tuple[Any, Any]:
    """The states of Python's and numpy's global generators; the latter None where numpy is not loaded."""
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def foreign_name(before: tuple[Any, Any], after: tuple[Any, Any]) -> str:
    """The module whose generator moved between two states, '' for neither."""
    if before[0] != after[0]:
        return "random"
    if before[1] is not None and after[1] is not None and not _same(before[1], after[1]):
        return "numpy.random"
    return ""


def _same(a: Any, b: Any) -> bool:
    return all((x == y).all() if hasattr(x, "shape") else x == y for x, y in zip(a, b, strict=True))


class Generators:
    """The states of torch's generators on the CPU and on the devices of a model, to be set again."""

    def __init__(self, model: nn.Module):
        self.cpu = torch.get_rng_state()
        self.cuda = {index: torch.cuda.get_rng_state(index) for index in cuda_devices(model)}

    def rewind(self) -> None:
        """Set the recorded states."""
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)


def cuda_devices(model: nn.Module) -> list[int]:
    """The indices of the CUDA devices that hold the model."""
    return _cuda_indices(tensor.device for tensor in (*model.parameters(), *model.buffers()))


def _cuda_indices(devices: Iterable[torch.device]) -> list[int]:
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
