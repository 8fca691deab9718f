"""One way to run a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Call = Callable[[], Tensor]

Runtime = Literal["eager", "inductor", "onnxruntime", "openvino"]

TITLES: dict[str, str] = {
    "eager": "eager", "inductor": "Inductor", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
}  # fmt: skip
"""Runtimes as tables name them."""


@dataclass(frozen=True)
class Contender:
    """One way to run a model.

    Attributes:
        name: unique within a row.
        ours: whether it runs the optimized model.
        runtime: what it runs on.
        prepare: compiles, and gives the call that is timed.
        variant: what was made of the model beforehand.
    """

    name: str
    ours: bool
    runtime: Runtime
    prepare: Callable[[], Call]
    variant: str = ""
