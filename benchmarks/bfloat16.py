"""Inference under ``torch.autocast("cpu", torch.bfloat16)``: how fast, and how far off.

    python -m benchmarks.bfloat16 [NAME ...]

The optimized model and frozen Inductor, both under autocast, beside the optimized model in float32, timed in turns in
one process; batch 1. How far results are from float64 is the norm of the difference relative to the norm. Writes
``results/bfloat16.json``.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from benchmarks.inference.models import BY_NAME
from benchmarks.inference.peers import frozen
from rewrite import optimize
from rewrite.distance import distance
from rewrite.timing import interleave

if TYPE_CHECKING:
    from benchmarks.inference.contender import Call

NAMES = (
    "resnet50", "convnext_tiny", "repvgg_a1", "efficientnet_b0", "mobilenetv3_large_100", "regnety_032", "replknet",
    "gated_conv1d_4096",
)  # fmt: skip
ROUNDS, SECONDS = 60, 6.0


def study(name: str) -> dict[str, Any]:
    """One row."""
    network = BY_NAME[name]
    model = network.make()
    x = network.draw(model, 1)
    truth = network.truth(model, x)
    fast = optimize(model, x, lower="inductor")
    peer = frozen_under_autocast(model, x)

    def reduced() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fast(x)  # type: ignore[no-any-return]

    calls = {"float32": lambda: fast(x), "bfloat16": reduced, "Inductor, bfloat16": peer}
    with torch.no_grad():
        away = {key: distance(call(), truth) for key, call in calls.items()}
        compared = interleave(calls, ROUNDS, 3, SECONDS)
    return harness.row(name, compared, distance=away)


def frozen_under_autocast(model: torch.nn.Module, x: torch.Tensor) -> Call:
    """Frozen Inductor, compiled and called under autocast."""
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        call = frozen(model, x)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return run


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    ms, away = row["ms"], row["distance"]
    cells = (f"{key} {ms[key]['median']:.2f} ms, {away[key] or math.nan:.1e} off" for key in ms)
    return f"{row['model']:24}{'; '.join(cells)}"


def main(names: list[str]) -> None:
    """Measure, print, save: each model in a process of its own."""
    rows = []
    for name in names or NAMES:
        command = [sys.executable, "-m", "benchmarks.bfloat16", "--one", name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
        print(line(rows[-1]), flush=True)
    print(harness.save("bfloat16", rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        warnings.simplefilter("ignore")
        print(json.dumps(study(sys.argv[2])))
    else:
        main(sys.argv[1:])
