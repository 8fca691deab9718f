"""Lowering with ONNX Runtime on the CPU."""

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

# the numbers of TensorProto.DataType
_TYPES = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int16: 5, torch.int32: 6, torch.int64: 7, torch.bool: 9,
    torch.float16: 10, torch.float64: 11, torch.bfloat16: 16,
}  # fmt: skip


class OnnxRuntime(Runtime):
    """Runs graphs in ONNX Runtime with all of its graph optimizations."""

    name = "ONNX Runtime"
    key = "onnxruntime"
    packages = ("onnxruntime",)
    dtypes = frozenset(_TYPES)

    def load(self, path: Path, arguments: Sequence[Facts], results: Sequence[Facts]) -> Session:
        """A session of an ONNX model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # its threads are not to wait in a loop between calls, where torch's run
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = [(node.name, _TYPES[facts.dtype]) for node, facts in
                 zip(session.get_inputs(), arguments, strict=True)]  # fmt: skip
        made = [(node.name, _TYPES[facts.dtype]) for node, facts in
                zip(session.get_outputs(), results, strict=True)]  # fmt: skip

        def run(arguments: Sequence[Tensor], results: Sequence[Tensor]) -> None:
            binding: Any = session.io_binding()
            for (name, dtype), tensor in zip(given, arguments, strict=True):
                binding.bind_input(name, "cpu", 0, dtype, tensor.shape, tensor.data_ptr())
            for (name, dtype), tensor in zip(made, results, strict=True):
                binding.bind_output(name, "cpu", 0, dtype, tensor.shape, tensor.data_ptr())
            session.run_with_iobinding(binding)

        return run
