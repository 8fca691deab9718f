"""Lowerings: ways to run a rewritten graph.

- :class:`~codegen.inductor.Inductor`: compiled by TorchInductor, the default where a compiler is found
- :class:`~codegen.eager.Eager`: operator by operator
- :class:`~codegen.onnx_runtime.OnnxRuntime`, :class:`~codegen.openvino.OpenVINO`: in a runtime on the CPU
- :class:`~codegen.fastest.Fastest`: in whichever of these is fastest on the example
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codegen.eager import Eager
from codegen.fastest import Fastest, default_lowering
from codegen.inductor import Inductor
from codegen.onnx_runtime import OnnxRuntime
from codegen.openvino import OpenVINO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewrite.lowering import Lowering

__all__ = ["LOWERINGS", "TRACED", "Eager", "Fastest", "Inductor", "OnnxRuntime", "OpenVINO", "default_lowering"]

LOWERINGS: Mapping[str, type[Lowering]] = {
    "inductor": Inductor, "eager": Eager, "onnxruntime": OnnxRuntime, "openvino": OpenVINO, "fastest": Fastest,
}  # fmt: skip
"""The lowerings by the names under which ``optimize(lower=...)`` knows them."""

TRACED: frozenset[str] = frozenset(("inductor", "eager"))
"""Those that compile inside ``torch.compile``, for symbolic sizes and with gradients."""
