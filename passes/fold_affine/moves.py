"""What an operator that moves values does to maps that stand behind or before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite.ops import AveragePool, Pad, Reduction

if TYPE_CHECKING:
    from passes.fold_affine.maps import Map
    from rewrite.ops import View

FARTHEST = 12
"""So many operators that move channels may stand between a layer and a map."""


def passes(move: View, mapped: Map) -> bool:
    """Whether it is the same to map each channel before an operator that moves values and behind it.

    A factor passes what is linear. A shift passes what leaves a constant as it is, which zeros beside it do not.
    """
    if isinstance(move, Reduction):
        return move.kind == "mean" or (move.kind == "sum" and not mapped.shifts)
    if isinstance(move, Pad) and move.mode == "constant" and _adds(move):
        return move.fill == 0 and not mapped.shifts
    if isinstance(move, AveragePool) and mapped.shifts:
        return not (move.divisor or (move.counts_padding and any(move.padding)) or move.ceil_mode)
    return True


def _adds(pad: Pad) -> bool:
    """Whether elements are added, not only taken away."""
    return any(amount > 0 for pair in pad.amounts for amount in pair)
