"""How far apart neighbours lie whose channels are last in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pitch(x: Tensor) -> int | None:
    """The floats from a place of ``[N, C, *size]`` to the next one, where its channels are last in memory.

    They may be some of more channels. None where they are not last, or places do not follow one another.
    """
    batch, channels, *size = x.shape
    counts = [*reversed(size), batch]  # the place that varies fastest first
    strides = [*reversed(x.stride()[2:]), x.stride(0)]
    found = next((stride for count, stride in zip(counts, strides, strict=True) if count > 1), channels)
    wanted = found
    for count, stride in zip(counts, strides, strict=True):
        if count > 1 and stride != wanted:
            return None
        wanted *= count
    return found if found >= channels and (channels == 1 or x.stride(1) == 1) else None
