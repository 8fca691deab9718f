"""What a layer is compared with: torch's own kernels in both layouts, cuDNN's and those without it, and Inductor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.kernels.layers import laid_out

if TYPE_CHECKING:
    from benchmarks.kernels.bound import Setting

Call = Callable[[], Any]

LAYOUTS = {"first": False, "last": True}
"""Whether channels are last, by the name in tables."""

COMPILED = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes of ``torch.compile`` by the names of contenders; graphs are recorded here, around every contender alike."""


def choices() -> tuple[str, ...]:
    """What may decide which kernel a depthwise convolution is: torch itself, cuDNN always, or never."""
    return ("auto", "cudnn", "native") if _has_choice() else ("auto", "native")


def _has_choice() -> bool:
    return hasattr(torch.backends.cudnn, "depthwise_kernel")


@contextlib.contextmanager
def choosing(choice: str) -> Iterator[None]:
    """Let depthwise convolutions run on the kernels of a choice, the fastest of cuDNN's where these are taken."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.enabled
    kept = cudnn.depthwise_kernel if _has_choice() else None
    try:
        cudnn.benchmark = True
        if _has_choice():
            cudnn.depthwise_kernel = choice
        elif choice == "native":
            cudnn.enabled = False
        yield
    finally:
        cudnn.benchmark, cudnn.enabled = before
        if kept is not None:
            cudnn.depthwise_kernel = kept


def eager(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Call]:
    """The layer operator by operator, by layout and by kernel: ``"last, native"``.

    Args:
        model: on the device and of the dtype of its inputs.
        inputs: in any layout; images are laid out for each contender before anything is timed.
    """
    found = {}
    images = any(x.dim() == 4 for x in inputs)
    for layout, last in LAYOUTS.items():
        if not images and last:
            continue  # sequences have one layout, whichever it is
        given = [laid_out(x, last) for x in inputs]
        formed = _formed(model, last) if images else model
        for choice in choices():
            found[f"{layout}, {choice}" if images else choice] = _run(formed, given, choice)
    return found


def compiled(model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str]) -> dict[str, Call]:
    """The layer compiled, by mode, in the layout of its inputs; compiled when first called.

    Args:
        model: as for :func:`eager`.
        inputs: of one layout.
        names: of :data:`COMPILED`.
    """
    last = any(x.dim() == 4 and not x.is_contiguous() for x in inputs)
    formed = _formed(model, last) if any(x.dim() == 4 for x in inputs) else model
    found = {}
    for name in names:
        made = torch.compile(formed, dynamic=False, mode=COMPILED[name])
        found[name] = _run(made, list(inputs), "auto")
    return found


def _formed(model: nn.Module, last: bool) -> nn.Module:
    layout = torch.channels_last if last else torch.contiguous_format
    return copy.deepcopy(model).to(memory_format=layout)


def _run(model: Callable[..., Any], inputs: Sequence[Tensor], choice: str) -> Call:
    def call() -> Any:
        with torch.no_grad(), choosing(choice):
            return model(*inputs)

    return call


def placed(setting: Setting) -> nn.Module:
    """The layer itself on the device, in the setting's dtype."""
    return setting.layer.module().to(setting.device, setting.dtype)
