"""OpenVINO on the CPU: the operators of its compiled model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.peers import Contractions, convolution, product
from benchmarks.peers.onnx_runtime import export


def contractions(module: nn.Module, inputs: tuple[Any, ...]) -> Contractions:
    """The contractions of the compiled model, in float32."""
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, inputs, path)
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return sum((_of(operator) for operator in compiled.get_runtime_model().get_ordered_ops()), Contractions())


def _of(operator: Any) -> Contractions:
    facts = operator.get_rt_info()
    kind = str(facts["layerType"].value) if "layerType" in facts else ""
    shapes = [list(given.get_shape()) for given in operator.inputs()]
    if kind in ("Convolution", "Deconvolution"):
        return convolution(shapes[0], shapes[1], list(operator.output(0).get_shape()), kind == "Deconvolution")
    if kind in ("FullyConnected", "MatMul", "Gemm"):
        return product(shapes[0], list(operator.output(0).get_shape()))
    return Contractions()
