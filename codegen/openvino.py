"""Lowering with OpenVINO's plug-in for CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codegen.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from codegen.partition import Facts
    from codegen.runtime import Session


class OpenVINO(Runtime):
    """Runs graphs in OpenVINO, in float32.

    It computes 64-bit integers in 32 bits, which indices are right with, and float64 in float32, so that programs with
    float64 are not for it.
    """

    name = "OpenVINO"
    key = "openvino"
    packages = ("openvino",)
    # NumPy, through which memory is shared, has no bfloat16
    dtypes = frozenset((
        torch.float32, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16,
    ))  # fmt: skip

    def load(self, path: Path, arguments: Sequence[Facts], results: Sequence[Facts]) -> Session:
        """A session of an ONNX model."""
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }  # fmt: skip
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        # a request is for one thread at a time
        idle: list[_Request] = []

        def run(arguments: Sequence[Tensor], results: Sequence[Tensor]) -> None:
            try:
                request = idle.pop()
            except IndexError:
                request = _Request(compiled.create_infer_request(), len(arguments), len(results), openvino.Tensor)
            request.run(arguments, results)
            idle.append(request)

        return run


class _Request:
    """An inference request over memory of the caller."""

    def __init__(self, request: Any, arguments: int, results: int, wrap: Any):
        self._request, self._wrap = request, wrap
        self._arguments = [request.get_input_tensor(i) for i in range(arguments)]
        self._results = [request.get_output_tensor(i) for i in range(results)]

    def run(self, arguments: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Compute ``results`` from ``arguments``."""
        request = self._request
        for i, tensor in enumerate(arguments):
            request.set_input_tensor(i, self._wrap(tensor.numpy(), shared_memory=True))
        for i, tensor in enumerate(results):
            request.set_output_tensor(i, self._wrap(tensor.numpy(), shared_memory=True))
        request.infer()
        # else the request points at memory that may be gone
        for i, own in enumerate(self._arguments):
            request.set_input_tensor(i, own)
        for i, own in enumerate(self._results):
            request.set_output_tensor(i, own)
