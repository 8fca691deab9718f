"""Recovery of a model after approximate rewrites: a student is trained to compute what its teacher computes.

First block by block, where there are boundaries inside, then end to end (Hinton, Vinyals and Dean, Distilling the
knowledge in a neural network, 2015).
"""

from __future__ import annotations

from rewrite.distillation.distilling import distill
from rewrite.distillation.history import Distilled, Stage
from rewrite.distillation.observing import Observable

__all__ = ["Distilled", "Observable", "Stage", "distill"]
