"""The rewrites, as a table of contents.

- :mod:`passes.simplify`: operators that compute nothing, and the same thing computed twice
- :mod:`passes.fold_batch_norm`: evaluated batch norms into the layers beside them
- :mod:`passes.fold_layer_scale`: factors for each channel into the layer before them
- :mod:`passes.reparameterize`: an add-tree of linear branches into one convolution
- :mod:`passes.fold_constants`: what depends on weights alone, evaluated once

Shared between them are :mod:`passes.affine`, a batch norm as an affine map, :mod:`passes.layout`, channels through
permutations and reshapes, :mod:`passes.obstruction`, what stands between a layer and what would be folded into it, and
:mod:`passes.memory`, what a caller sees of strides and storage.
"""

from __future__ import annotations

from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.fold_layer_scale import FoldLayerScale
from passes.reparameterize import Reparameterize
from passes.simplify import Simplify
from rewrite.pipeline import Pipeline, Registry, Step

STEPS: tuple[type[Step], ...] = (Simplify, FoldBatchNorm, FoldLayerScale, Reparameterize, FoldConstants)
"""Every step that pipelines can name."""


def registry() -> Registry:
    """The steps of this package and of installed plug-ins, by name."""
    return Registry(STEPS).with_plugins()


def default_pipeline() -> Pipeline:
    """The steps that run unless others are named; equal in real arithmetic element by element, or to the bit."""
    # copies and reshapes between the branches hide them; merged branches leave new ones
    return Pipeline((Simplify(), Reparameterize(), Simplify(), FoldConstants()))
