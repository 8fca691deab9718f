"""Pool windows before what commutes with the pool, so that the rest has fewer elements to do.

- ``maxima``: activations that do not decrease, after max pooling
- ``averages``: 1x1 convolutions, after average pooling
"""

from __future__ import annotations

from dataclasses import dataclass

from passes.commute_pooling.averages import AveragePoolBeforePointwise
from passes.commute_pooling.maxima import MaxPoolBeforeActivation
from rewrite.pipeline import Pass
from rewrite.rule import Rule

__all__ = ["AveragePoolBeforePointwise", "CommutePooling", "MaxPoolBeforeActivation"]


@dataclass(frozen=True)
class CommutePooling(Pass):
    """Move pooling before activations and pointwise convolutions."""

    def rules(self) -> tuple[Rule, ...]:
        """The rules; each moves a pool one operator closer to the input."""
        return MaxPoolBeforeActivation(), AveragePoolBeforePointwise()
