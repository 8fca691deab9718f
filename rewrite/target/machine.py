"""What a measurement depends on besides what is measured: processor or accelerator, threads, libraries."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rewrite.versions import __version__

_LIBRARIES = ("triton", "onnxruntime", "openvino")


def facts(device: torch.device) -> dict[str, str]:
    """The facts of this machine and process as text, by name; measurements hold where all of them are equal."""
    found = {
        "device": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "cores": str(_cores()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": str(torch.backends.mkldnn.enabled),
        "matmul": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "torch-rewrite": __version__,  # whose kernels are timed
    }
    for name in ("OMP_NUM_THREADS", "KMP_AFFINITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"):
        found[name] = os.environ.get(name, "")
    for package in _LIBRARIES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    # virtual machines give all models of a maker one name
    parts = [named.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return " ".join(part for part in parts if part) or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
