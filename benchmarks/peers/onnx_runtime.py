"""ONNX Runtime with all graph optimizations: the operators that it runs, read off its own profile."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import Contractions, convolution, product


def export(module: nn.Module, inputs: tuple[Any, ...], path: Path) -> None:
    """Write a module as ONNX."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, path, dynamo=True, verbose=False)


def contractions(module: nn.Module, inputs: tuple[Any, ...]) -> Contractions:
    """The contractions of the optimized program.

    The last transformation, into a blocked layout, is left out: it pads channels and removes nothing.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, inputs, path)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        # a weight that is packed is missing from the profile
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
        session.run(None, {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)})
        events = json.loads(Path(session.end_profiling()).read_text())
    return sum((_of(event) for event in events), Contractions())


def _of(event: dict[str, Any]) -> Contractions:
    if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
        return Contractions()
    facts = event["args"]
    kind = facts["op_name"]
    shapes = [next(iter(entry.values())) for entry in facts["input_type_shape"]]
    result = next(iter(facts["output_type_shape"][0].values()), None) if facts["output_type_shape"] else None
    if result is None:
        return Contractions()
    if "Conv" in kind and "Integer" not in kind:
        return convolution(shapes[0], shapes[1], result, "Transpose" in kind)
    if "MatMul" in kind or "Gemm" in kind:
        return product(shapes[0], result)
    return Contractions()
