"""Layers whose kernels are written before they are rewritten."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rewrite.testing import ConvSpec


def inner(module: nn.Module) -> Any:
    """The convolution of a layer that may pad before it."""
    return module[1] if isinstance(module, nn.Sequential) else module


def planted(spec: ConvSpec, formula: str, before: tuple[int, ...], after: tuple[int, ...]) -> nn.Module:
    """The layer with a product of two random tensors for its kernel."""
    module = spec.module()
    conv = inner(module)
    generator = torch.Generator().manual_seed(spec.seed)
    factors = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (before, after))
    with torch.no_grad():
        conv.weight.copy_(torch.einsum(formula, *factors).reshape(conv.weight.shape))
    return module
