"""Reductions that are less than they look.

- ``merge``: reductions of reductions
- ``unit``: reductions along dimensions of size one
- ``norms``: means of group norms
- ``finite``: values that are one and the same number
- ``extremes``: extremes of a value and a constant number

What becomes of numbers that are not finite: where the model gives NaN or an infinity because an *input* has one, the
rewritten model gives one too, unless ``finite=True`` is asked for. What overflows inside the model, a sum of sums in
half precision, is rounding and may end otherwise. With ``finite=True`` a value that is the same number for all finite
inputs is that number, and what it was computed from is dropped: NaN then silently becomes a number, and no gradient
flows back where one of zeros did.
"""

from __future__ import annotations

from dataclasses import dataclass

from passes.reduction_algebra.extremes import ClampByConstant
from passes.reduction_algebra.finite import FillDegenerate
from passes.reduction_algebra.merge import MergeReductions
from passes.reduction_algebra.norms import MeanOfGroupNorm, MeanOfUniformGroupNorm
from passes.reduction_algebra.unit import RemoveUnitReduction
from rewrite.pipeline import Pass
from rewrite.rule import Rule

__all__ = [
    "ClampByConstant", "FillDegenerate", "MeanOfGroupNorm", "MeanOfUniformGroupNorm", "MergeReductions",
    "ReductionAlgebra", "RemoveUnitReduction",
]  # fmt: skip


@dataclass(frozen=True)
class ReductionAlgebra(Pass):
    """Merge and remove reductions.

    Attributes:
        finite: inputs are finite, so that what does not depend on them then may be dropped.
    """

    finite: bool = False

    def rules(self) -> tuple[Rule, ...]:
        """The rules; they do not depend on each other's order."""
        return MergeReductions(), RemoveUnitReduction(), MeanOfGroupNorm(), FillDegenerate(self.finite)
