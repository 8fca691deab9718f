"""timm, also where torchvision, which timm imports, has a binary part for another build of torch."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from types import ModuleType

_LIBRARIES: list[torch.library.Library] = []
"""Definitions of operators live as long as these objects."""


@functools.cache
def timm() -> ModuleType:
    """The package ``timm``.

    On import the Python part of torchvision gives two operators a meta implementation, and fails if the binary part has
    not defined them. No network of timm calls them, so their schemas are enough.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # timm says what it lacks
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
    return importlib.import_module("timm")
