"""A child process that compiles kernels into Triton's cache, as a launch on a GPU would. Run as a file by ``ahead``.

Requests are files in a folder; each is taken by renaming it. The process ends with its parent, or when there is a file
``end`` and no request is left.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parents[2] / "codegen" / "triton" / "source.py"


class Absent:
    """Stands for a GPU that kernels are compiled for, and never launched on.

    Args:
        target: the GPU, as Triton's compiler takes it.
    """

    def __init__(self, target: Any):
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def source_module() -> Any:
    """``codegen.triton.source``, without the package around it, which imports far more."""
    spec = importlib.util.spec_from_file_location("kernel_source", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def warm(request: dict[str, Any], sources: Any) -> None:
    """Compile one kernel for operands that are aligned."""
    import torch

    kinds = {"*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16, "*i1": torch.bool,
             "*i8": torch.int8, "*u8": torch.uint8, "*i16": torch.int16, "*i32": torch.int32,
             "*i64": torch.int64}  # fmt: skip
    source = sources.Source(**request["source"])
    tensors = [kinds[kind] for kind in source.signature.values() if kind in kinds]
    compiled = source.kernel().warmup(
        *tensors, request["samples"], **source.constants, num_warps=source.warps, num_stages=source.stages,
        grid=(request["programs"], 1, 1),
    )  # fmt: skip
    with contextlib.suppress(Exception):  # of Triton 3.7 and later, and where there is no driver
        link(compiled)


def link(compiled: Any) -> None:
    """Compile the C code that launches kernels with such arguments.

    Raises:
        Exception: it is not there, or cannot be compiled here.
    """
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(compiled.src, compiled.metadata)


def main(folder: str, backend: str, architecture: str, threads: str) -> int:
    """Compile until there is nothing more to do."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    arch = int(architecture) if architecture.isdigit() else architecture
    driver.set_active(Absent(GPUTarget(backend, arch, int(threads))))
    sources, parent, at = source_module(), os.getppid(), Path(folder)
    while os.getppid() == parent and at.exists():
        ended = (at / "end").exists()  # before looking: what is written later comes with a later look
        taken = _taken(at)
        if taken is not None:
            with contextlib.suppress(Exception):  # told where the kernel is launched
                warm(json.loads(taken.read_text()), sources)
            taken.unlink(missing_ok=True)
        elif ended:
            return 0
        else:
            time.sleep(0.02)
    return 0


def _taken(folder: Path) -> Path | None:
    """A request that no other process has."""
    for path in sorted(folder.glob("*.json")):
        mine = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            path.rename(mine)
            return mine
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
