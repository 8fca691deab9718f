"""The default pipeline over a model, as golden files remember it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

import passes
from rewrite.cost import count
from rewrite.driver import Driver
from rewrite.report import Report
from rewrite.trace import capture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rewrite.verdict import Verifier

UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
"""Whether tests write their golden files instead of comparing with them."""


# Export numbers the values of a program, and each release of torch does it its own way.
same_torch = pytest.mark.skipif(
    torch.__version__.split(".")[:2] != ["2", "13"], reason="the golden files hold the names that torch 2.13 gives"
)


def report_of(model: nn.Module, x: Tensor, verifier: Verifier | None = None) -> Report:
    """What the default pipeline does to a model in eval mode."""
    graph = capture(model.eval(), (x,)).graph
    before = count(graph)
    pipeline = passes.default_pipeline()
    records = Driver(graph, verifier).run(pipeline)
    return Report(type(model).__name__, str(pipeline), records, before, count(graph))
