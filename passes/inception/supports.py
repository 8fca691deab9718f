"""The parts of a depthwise kernel that a channel of an inception mixer may keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rewrite.ops import Convolution


@dataclass(frozen=True)
class Support:
    """A kind of kernel.

    Attributes:
        name: ``"identity"``, ``"square"``, ``"row"``, ``"column"``, ``"rank 1"``, ..., or ``"whole"``.
        mask: ``[*kernel]``, the taps that are kept; None of separable kernels, which keep all.
        rank: of separable kernels, else 0.
        taps: multiply-accumulates for each output.
    """

    name: str
    mask: Tensor | None
    rank: int
    taps: int


def supports(conv: Convolution, square: int, band: int, rank: int) -> list[Support]:
    """Those that take fewer products than the whole kernel, the cheapest first; the whole kernel is the last one.

    Args:
        conv: a depthwise convolution of two dimensions.
        square: the side of the square.
        band: the length of rows and columns; 0 for that of the kernel.
        rank: the highest of separable kernels.
    """
    height, width = conv.kernel
    rows, columns = ((torch.arange(n) - place).abs() for n, place in zip(conv.kernel, _middle(conv), strict=True))
    length = band or max(height, width)
    row, column = (rows == 0)[:, None], (columns == 0)[None, :]
    inner = square // 2
    found = {
        "identity": row & column,
        "square": (rows <= inner)[:, None] & (columns <= inner)[None, :],
        "row": row & (columns <= length // 2)[None, :],
        "column": (rows <= length // 2)[:, None] & column,
    }
    masked = [Support(name, mask.expand(height, width), 0, int(mask.sum())) for name, mask in found.items()]
    split = [Support(f"rank {r}", None, r, r * (height + width)) for r in range(1, rank + 1)]
    whole = Support("whole", torch.ones(height, width, dtype=torch.bool), 0, height * width)
    cheaper = [each for each in (*masked, *split) if each.taps < whole.taps]
    return [*sorted(cheaper, key=lambda each: each.taps), whole]


def _middle(conv: Convolution) -> list[int]:
    """The tap that reads straight ahead where the result is as large as the input, else that in the middle."""
    keeps = [low + high == step * (count - 1) and low % step == 0
             for (low, high), step, count in zip(conv.padding, conv.dilation, conv.kernel, strict=True)]  # fmt: skip
    straight = [low // step for (low, _), step in zip(conv.padding, conv.dilation, strict=True)]
    return [place if keep else count // 2 for place, keep, count in zip(straight, keeps, conv.kernel, strict=True)]
