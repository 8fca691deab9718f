"""Reparameterisation: an add-tree of linear branches becomes one convolution.

- :mod:`~passes.reparameterize.kernels`: where a kernel reads, in integers.
- :mod:`~passes.reparameterize.forms`: linear forms, as data.
- :mod:`~passes.reparameterize.branches`: reading an add-tree as a linear form.
- :mod:`~passes.reparameterize.clusters`: which branches become one convolution.
- :mod:`~passes.reparameterize.plan`: which terms are merged, and whether it is worth it.
- :mod:`~passes.reparameterize.embed`: weight algebra that places a kernel into a larger one.
- :mod:`~passes.reparameterize.build`: the merged convolution.
- :mod:`~passes.reparameterize.rule`: the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fold_affine import FoldBatchNorm, FoldLayerScale
from passes.reparameterize.rule import MergeBranches
from rewrite.pipeline import Pass

if TYPE_CHECKING:
    from rewrite.rule import Rule

__all__ = ["MergeBranches", "Reparameterize"]


@dataclass(frozen=True)
class Reparameterize(Pass):
    """Merge parallel linear branches into one layer, and fold norms and layer scales, until nothing changes any more.

    Attributes:
        max_kernel: no merged kernel spans more elements than this in any dimension; None for no limit.
    """

    max_kernel: int | None = None

    def __post_init__(self) -> None:
        MergeBranches(self.max_kernel)

    def rules(self) -> tuple[Rule, ...]:
        """Those of ``fold-batch-norm``, ``fold-layer-scale``, and :class:`MergeBranches`."""
        return (*FoldBatchNorm().rules(), FoldLayerScale(), MergeBranches(self.max_kernel))
