"""The modules that ``optimize`` and ``transform`` return."""

from rewrite.result.module import OptimizedModule
from rewrite.result.program import Program, Ready
from rewrite.result.shapes import Policy, Shapes
from rewrite.result.source import source_of
from rewrite.result.standalone import Alone, from_artifact, released
from rewrite.result.trainable import TransformedModule

__all__ = [
    "Alone", "OptimizedModule", "Policy", "Program", "Ready", "Shapes", "TransformedModule", "from_artifact",
    "released", "source_of",
]  # fmt: skip
