"""A compiler that rewrites PyTorch models, and proves each rewrite as it makes it.

    from rewrite import optimize

    fast = optimize(model, example_inputs)
    print(fast.report)
    print(fast.report.diff("reparameterize"))

``optimize`` gives a verified module for inference, ``transform`` one that trains on the user's own parameters.
``approximate`` replaces parts by cheaper ones that compute nearly the same, and ``distill`` trains a model to compute
what another one computes. ``explain`` says why rules do not match in a model, and what would make them; ``offers`` what
choices could be made, and their cost; ``kernel_plan`` what would be fused on a GPU; ``filters`` how good the kernels of
a network are. ``bisect`` finds the one rewrite that makes a difference, and a :class:`Plan` makes the rewrites of a run
again. To write a rule, see :class:`Rule` and :mod:`rewrite.pattern`; to compose passes, :class:`Pipeline`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, Any

from rewrite.versions import __version__

if TYPE_CHECKING:
    from rewrite.api import (
        Bisection,
        approximate,
        bisect,
        distill,
        explain,
        filters,
        kernel_plan,
        load,
        offers,
        optimize,
        transform,
    )
    from rewrite.errors import (
        ArtifactError,
        BisectionError,
        CaptureError,
        CycleError,
        InputError,
        PipelineError,
        PlanError,
        RewriteError,
        RuleError,
        VerificationError,
    )
    from rewrite.pipeline import Pass, Pipeline
    from rewrite.plan import Plan
    from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

_HOMES = {
    "approximate": "rewrite.api", "bisect": "rewrite.api", "Bisection": "rewrite.api", "distill": "rewrite.api",
    "explain": "rewrite.api", "filters": "rewrite.api", "kernel_plan": "rewrite.api", "load": "rewrite.api",
    "offers": "rewrite.api", "optimize": "rewrite.api", "transform": "rewrite.api",
    "RewriteError": "rewrite.errors", "ArtifactError": "rewrite.errors", "BisectionError": "rewrite.errors",
    "CaptureError": "rewrite.errors", "InputError": "rewrite.errors",
    "PipelineError": "rewrite.errors", "RuleError": "rewrite.errors", "CycleError": "rewrite.errors",
    "VerificationError": "rewrite.errors", "PlanError": "rewrite.errors",
    "Pass": "rewrite.pipeline", "Pipeline": "rewrite.pipeline",
    "Plan": "rewrite.plan",
    "Fidelity": "rewrite.rule", "Match": "rewrite.rule", "Miss": "rewrite.rule", "Refusal": "rewrite.rule",
    "Rule": "rewrite.rule",
}  # fmt: skip

__all__ = [
    "ArtifactError", "Bisection", "BisectionError", "CaptureError", "CycleError", "Fidelity", "InputError", "Match",
    "Miss", "Pass", "Pipeline", "PipelineError", "Plan", "PlanError", "Refusal", "RewriteError", "Rule", "RuleError",
    "VerificationError", "__version__", "approximate", "bisect", "distill", "explain", "filters", "kernel_plan", "load",
    "offers", "optimize", "transform",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rewrite' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__


def _warn_about_strangers() -> None:
    """The package names are generic: another distribution may have installed its own ``passes`` or ``codegen``."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("passes", "codegen"):
        spec = importlib.util.find_spec(name)
        origin = os.path.abspath(spec.origin) if spec is not None and spec.origin else "nowhere"
        if os.path.dirname(os.path.dirname(origin)) != root:
            warnings.warn(
                f"the package '{name}' comes from {origin}, but torch-rewrite is in {root}: another distribution uses "
                f"the same name; put {root} first on sys.path or remove the other",
                stacklevel=3,
            )


_warn_about_strangers()
