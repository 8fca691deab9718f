"""From a result back to the model that it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite.result.module import OptimizedModule
from rewrite.result.trainable import TransformedModule

if TYPE_CHECKING:
    from torch import nn


def source_of(model: nn.Module) -> nn.Module:
    """The model that an optimized or transformed module was made of; any other module is returned as it is."""
    if isinstance(model, OptimizedModule):
        return model._engine.source
    return model._live.source if isinstance(model, TransformedModule) else model
