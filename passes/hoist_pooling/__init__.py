"""Pool before what is linear instead of after it.

A mean or a sum commutes with every linear map. Taken early, it leaves the map a vector where it had an image:

- ``over_layers``: convolutions, plain and transposed, and linear layers; sums over output channels
- ``over_sums``: sums, factors that do not vary along the pooled dimensions, evaluated batch norms
- ``over_layout``: reshapes and permutations

Activations are not linear, and nothing is moved across them. Numbers that are not finite stay so: where the model gives
NaN or an infinity because its input has one, so does the rewritten model.
"""

from __future__ import annotations

from dataclasses import dataclass

from passes.hoist_pooling.over_layers import HoistSharedPooling, PoolBeforeLayer
from passes.hoist_pooling.over_layout import PoolBeforeLayout
from passes.hoist_pooling.over_sums import PoolBeforeScale, PoolBeforeSum
from rewrite.pipeline import Pass
from rewrite.rule import Rule

__all__ = [
    "HoistPooling", "HoistSharedPooling", "PoolBeforeLayer", "PoolBeforeLayout", "PoolBeforeScale", "PoolBeforeSum",
]  # fmt: skip


@dataclass(frozen=True)
class HoistPooling(Pass):
    """Take means and sums before the layers, sums, factors and reshapes that they commute with."""

    def rules(self) -> tuple[Rule, ...]:
        """The rules; each moves a reduction one operator closer to the input."""
        return PoolBeforeLayout(), PoolBeforeScale(), PoolBeforeSum(), PoolBeforeLayer()
