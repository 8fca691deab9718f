"""What benchmarks share: timing (:mod:`rewrite.timing`), the environment, result files and tables."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rewrite.timing import Comparison, interleave

__all__ = ["RESULTS", "Comparison", "environment", "interleave", "row", "save", "table"]

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Versions and machine, as every result file records them."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for package in ("triton", "timm", "onnxruntime", "openvino"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")


def save(name: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    """Write rows with the environment, and whatever else belongs to them, to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **more, "rows": rows}, indent=1) + "\n")
    return path


def row(name: str, comparison: Comparison, **more: Any) -> dict[str, Any]:
    """One JSON row: the model, every contender's timing, the noise, and whatever else belongs to it."""
    timings = {key: {k: round(v, 4) for k, v in asdict(timing).items()} for key, timing in comparison.timings.items()}
    return {"model": name, "ms": timings, "noise": round(comparison.noise, 4), **more}


def table(rows: list[dict[str, Any]]) -> str:
    """The medians of all rows as text, one line a model."""
    names = list(dict.fromkeys(key for item in rows for key in item["ms"]))
    lines = ["model".ljust(28) + "".join(name.rjust(20) for name in names) + "noise".rjust(8)]
    for item in rows:
        cells = [f"{item['ms'][name]['median']:.2f} ms".rjust(20) if name in item["ms"] else " " * 20 for name in names]
        lines.append(item["model"].ljust(28) + "".join(cells) + f"{item['noise']:.1%}".rjust(8))
    return "\n".join(lines)
