"""How long ``optimize`` takes in the first process and in the second, which finds the program in the cache.

    python -m benchmarks.second_process [model ...]

Every process is new, and before each first one the caches of this project and of TorchInductor are empty. Imports are
not counted. Prints a line for each model and writes ``results/second_process.json``: medians over the rounds, in
seconds, of ``optimize`` alone and of ``optimize`` with the first call, which compiles.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks import harness
from rewrite import optimize
from tests.corpus import input_for, load, randomize

MODELS = ("repvgg_a0", "resnet18", "convnext_atto")
ROUNDS = 3


def measure(name: str, lower: str) -> dict[str, Any]:
    """Seconds of one ``optimize`` and of the first call after it, in this process."""
    model = randomize(load(name))
    x = input_for(model, 1)
    with torch.no_grad():
        model(x)  # what the first call of any model in a process initializes is no part of this
        started = time.perf_counter()
        fast = optimize(model, x, lower=lower)
        ready = time.perf_counter()
        fast(x)
        called = time.perf_counter()
    return {"optimize": ready - started, "with first call": called - started, "split": dict(fast.report.time)}


def pair(name: str, lower: str) -> list[dict[str, Any]]:
    """The same in two processes, one after the other, over caches of their own."""
    with tempfile.TemporaryDirectory() as caches:
        places = {key: os.path.join(caches, key) for key in ("TORCH_REWRITE_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        environment = {**os.environ, **places, "TORCH_REWRITE_CACHE": "1"}
        command = [sys.executable, "-m", "benchmarks.second_process", "--one", name, lower]
        runs = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            for _ in ("first", "second")
        ]
    return [json.loads(run.splitlines()[-1]) for run in runs]


def row(name: str) -> dict[str, Any]:
    """One model: medians and all rounds."""
    alone = [pair(name, "eager") for _ in range(ROUNDS)]
    called = pair(name, "inductor")
    seconds = {
        "optimize": [round(statistics.median(run[i]["optimize"] for run in alone), 3) for i in range(2)],
        "with first call": [round(run["with first call"], 3) for run in called],
    }
    return {
        "model": name,
        "seconds": {key: {"first": first, "second": second} for key, (first, second) in seconds.items()},
        "speedup": {key: round(first / second, 2) for key, (first, second) in seconds.items()},
        "rounds": [[{**run, "split": _rounded(run["split"])} for run in both] for both in (*alone, called)],
    }


def _rounded(split: dict[str, float]) -> dict[str, float]:
    return {phase: round(seconds, 3) for phase, seconds in split.items()}


def main(names: list[str]) -> None:
    """Measure, print, save."""
    rows = []
    for name in names or MODELS:
        rows.append(row(name))
        print(json.dumps({key: rows[-1][key] for key in ("model", "seconds", "speedup")}), flush=True)
    print(harness.save("second_process", rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:4])))
    else:
        main(sys.argv[1:])
