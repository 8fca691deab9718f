"""Remove what computes nothing.

- ``copies``: clones, dropout in evaluation, conversions to the dtype that a value has
- ``identities``: reshapes, slices, padding, rolls that move nothing
- ``chains``: two reshapes, permutations or negations in a row
- ``pieces``: all pieces of a tensor, concatenated again
- ``arithmetic``: multiplication by one, addition of zero
- ``clamps``: clamps of clamped values
- ``idle``: activations of values that they leave as they are
- ``duplicates``: common subexpressions

Nodes that nothing reads need no rule: the driver erases them when a step begins and after each rewrite.
"""

from __future__ import annotations

from dataclasses import dataclass

from passes.simplify.arithmetic import RemoveNeutral, RemoveZeroTerm
from passes.simplify.chains import CancelNegations, MergePermutes, MergeReshapes
from passes.simplify.clamps import MergeClamps
from passes.simplify.copies import RemoveCopy
from passes.simplify.duplicates import MergeDuplicates
from passes.simplify.identities import RemoveIdentity
from passes.simplify.idle import RemoveIdleActivation
from passes.simplify.pieces import JoinPieces
from rewrite.pipeline import Pass
from rewrite.rule import Rule

__all__ = [
    "CancelNegations", "JoinPieces", "MergeClamps", "MergeDuplicates", "MergePermutes", "MergeReshapes", "RemoveCopy",
    "RemoveIdentity", "RemoveIdleActivation", "RemoveNeutral", "RemoveZeroTerm", "Simplify",
]  # fmt: skip


@dataclass(frozen=True)
class Simplify(Pass):
    """All rules of this package, together to a fixed point. Each of them lowers the number of operators or operands."""

    def rules(self) -> tuple[Rule, ...]:
        """The rules; they do not depend on each other's order."""
        return (
            RemoveCopy(), RemoveIdentity(), MergeReshapes(), MergePermutes(), CancelNegations(), RemoveNeutral(),
            RemoveZeroTerm(), MergeClamps(), RemoveIdleActivation(), MergeDuplicates(), JoinPieces(),
        )  # fmt: skip
