"""Capture: from the user's module to a :class:`~rewrite.graph.Graph` that has been compared with it.

:func:`capture` is the entry. :func:`build` and :func:`normalize` serve front ends that have a traced program already;
:func:`retarget` moves a graph to another device.
"""

from __future__ import annotations

from rewrite.trace.build import build
from rewrite.trace.capture import Capture, capture
from rewrite.trace.device import retarget
from rewrite.trace.guard import check_model, unwrap
from rewrite.trace.isolate import isolated
from rewrite.trace.method import bound, class_of, method_of
from rewrite.trace.normalize import normalize
from rewrite.trace.twin import replica

__all__ = [
    "Capture", "bound", "build", "capture", "check_model", "class_of", "isolated", "method_of", "normalize", "replica",
    "retarget", "unwrap",
]  # fmt: skip
