r"""Constant affine maps of each channel, folded into the layers beside them.

.. math:: a_o (W_o x + b_o) + s_o = (a_o W_o) x + (a_o b_o + s_o), \quad W (a x + s) + b = (W a) x + (W s + b)

- :mod:`~passes.fold_affine.maps`: what such a map is, and :mod:`~passes.fold_affine.reading`, what is one.
- :mod:`~passes.fold_affine.channels`: where channels are behind operators that move them, and
  :mod:`~passes.fold_affine.moves`, which maps pass these.
- :mod:`~passes.fold_affine.vectors`: coefficients over a layer's channels, as weight algebra.
- :mod:`~passes.fold_affine.folding`: what the rules have in common.
- :mod:`~passes.fold_affine.region`: what else reads the layer, and must not notice.
- :mod:`~passes.fold_affine.behind` and :mod:`~passes.fold_affine.before`: a map behind a layer, or before layers;
  :mod:`~passes.fold_affine.parts`: one behind layers that are concatenated.
- :mod:`~passes.fold_affine.cancellation`: why a shift of the model's input may have to stay.
- :mod:`~passes.fold_affine.batch_norm`, :mod:`~passes.fold_affine.layer_scale`, :mod:`~passes.fold_affine.shift`,
  :mod:`~passes.fold_affine.norm_affine`, :mod:`~passes.fold_affine.bias_map`: the rules.

Weights that are folded are computed in float64 and rounded once. A product that is too large for the weights' dtype is
seen when the match is verified with them, and then the map stays. Finite inputs may overflow in a map and not in the
folded layer, or the other way round; where both are finite they agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fold_affine.batch_norm import FoldBatchNorm, FoldBatchNormAfter, FoldBatchNormBefore
from passes.fold_affine.bias_map import FoldBiasMap
from passes.fold_affine.layer_scale import FoldInputScale, FoldLayerScale
from passes.fold_affine.norm_affine import FoldNormAffine
from passes.fold_affine.parts import FoldBehindConcatenation
from passes.fold_affine.shift import FoldInputShift, FoldShift
from rewrite.pipeline import Pass

if TYPE_CHECKING:
    from rewrite.rule import Rule

__all__ = [
    "FoldAffine", "FoldBatchNorm", "FoldBatchNormAfter", "FoldBatchNormBefore", "FoldBehindConcatenation",
    "FoldBiasMap", "FoldInputScale", "FoldInputShift", "FoldLayerScale", "FoldNormAffine", "FoldShift",
]  # fmt: skip


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold batch norms, factors, shifts, and parameters of norms over features into the layers beside them."""

    def rules(self) -> tuple[Rule, ...]:
        """Those for a map behind layers come first: they leave nothing behind."""
        return (
            FoldBatchNormAfter(), FoldLayerScale(), FoldShift(), FoldBehindConcatenation(),
            FoldBatchNormBefore(), FoldInputScale(), FoldInputShift(), FoldBiasMap(), FoldNormAffine(),
        )  # fmt: skip
