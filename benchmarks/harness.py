"""Timing that survives a shared machine: interleaved rounds, medians, and an A/A pair that shows the noise.

Every contender runs once in each round, in an order that rotates, so that a slow minute hits all of them. The first
contender runs twice in each round under two names; how far its two medians differ is the noise of the measurement, and
ratios closer to one than that mean nothing.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Comparison:
    """Timings by contender, and the relative difference of the first contender's two medians."""

    timings: dict[str, Timing]
    noise: float

    def ratio(self, of: str, to: str) -> float:
        """How many times faster ``to`` is than ``of``."""
        return self.timings[of].median / self.timings[to].median


def interleave(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = 15, warmup: int = 3, seconds: float = 20.0
) -> Comparison:
    """Time the contenders in interleaved rounds, at most about ``seconds`` in all (never fewer than five rounds)."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    names = list(contenders)
    entries = [(name, contenders[name]) for name in names] + [("", contenders[names[0]])]
    samples: dict[str, list[float]] = {name: [] for name, _ in entries}
    for _ in range(warmup):
        for _, call in entries:
            call()
    started = time.perf_counter()
    for index in range(rounds):
        if index >= 5 and time.perf_counter() - started > seconds:
            break
        shift = index % len(entries)
        for name, call in entries[shift:] + entries[:shift]:
            synchronize()
            begin = time.perf_counter()
            call()
            synchronize()
            samples[name].append(1e3 * (time.perf_counter() - begin))
    again = statistics.median(samples.pop(""))
    first = statistics.median(samples[names[0]])
    return Comparison({name: _timing(times) for name, times in samples.items()}, abs(again - first) / first)


def _timing(times: list[float]) -> Timing:
    low, _, high = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), low, high, len(times))


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
    for package in ("triton", "timm"):
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


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with the environment to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
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
