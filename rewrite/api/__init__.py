"""The composition root: the one place that knows the framework, the passes and the code generators."""

from __future__ import annotations

from rewrite.api.approximating import approximate
from rewrite.api.bisecting import Bisection, bisect
from rewrite.api.explaining import explain
from rewrite.api.filtering import filters
from rewrite.api.kernels import kernel_plan
from rewrite.api.loading import load
from rewrite.api.offering import offers
from rewrite.api.optimizing import optimize, transform
from rewrite.distillation import distill

__all__ = [
    "Bisection", "approximate", "bisect", "distill", "explain", "filters", "kernel_plan", "load", "offers", "optimize",
    "transform",
]  # fmt: skip
