"""Depthwise convolutions whose channels use parts of their kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.passes.rewriting import Result

MASKS = {"identity": (1, 1), "centre": (1, 1), "row": (1, 9), "column": (9, 1), "square": (3, 3), "whole": (9, 9)}


def depthwise(kinds: list[str], kernel: tuple[int, int] = (7, 5), **options: Any) -> nn.Conv2d:
    """A convolution whose channels use these parts of their kernels; the centre is the tap at the padding."""
    settings = {"padding": tuple(k // 2 for k in kernel), **options}
    conv = nn.Conv2d(len(kinds), len(kinds), kernel, groups=len(kinds), **settings)
    steps = conv.dilation
    with torch.no_grad():
        for channel, kind in enumerate(kinds):
            keep = torch.ones(kernel, dtype=torch.bool)
            for dim, (extent, size) in enumerate(zip(MASKS[kind], kernel, strict=True)):
                away = (torch.arange(size) - conv.padding[dim] // steps[dim]).abs() > extent // 2
                keep &= ~(away[:, None] if dim == 0 else away[None, :])
            conv.weight[channel, 0][~keep] = 0
            if kind == "identity":
                conv.weight[channel, 0][keep] = 1
                if conv.bias is not None:
                    conv.bias[channel] = 0
    return conv.eval()


def kernels(result: Result) -> list[tuple[int, ...]]:
    return [layer.kernel for layer in result.layers]
