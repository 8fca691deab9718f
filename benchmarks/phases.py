"""Where the waiting time of ``optimize`` goes: capture, passes, verification, and lowering.

    python -m benchmarks.phases

Measures convnext_base (capture, passes and verification must each stay below capture) and a cold ``optimize`` of
convnext_tiny in a process of its own with an empty Inductor cache. Writes ``results/phases.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks import harness
from rewrite import optimize
from tests.corpus import input_for, load, randomize


def phases(name: str, lower: str) -> dict[str, Any]:
    """Seconds of each phase of one ``optimize`` with its first call."""
    model = randomize(load(name))
    x = input_for(model, 1)
    started = time.perf_counter()
    fast = optimize(model, x, lower=lower)
    ready = time.perf_counter() - started
    with torch.no_grad():
        fast(x)
    total = time.perf_counter() - started
    split = {key: round(seconds, 2) for key, seconds in fast.report.time.items()}
    outside = total - fast.report.time.get("lowering", 0.0)
    return {"model": name, "lower": lower, "split": split, "optimize": round(ready, 2),
            "with first call": round(total, 2), "outside lowering": round(outside, 2)}  # fmt: skip


def cold(name: str) -> dict[str, Any]:
    """The same in a new process whose Inductor cache is empty."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, "-m", "benchmarks.phases", "--one", name]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    """Measure, print, save."""
    rows = [phases("convnext_base", "eager"), phases("repvgg_a0", "eager"), cold("convnext_tiny")]
    for row in rows:
        print(json.dumps(row))
    print(harness.save("phases", rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(phases(sys.argv[2], "inductor")))
    else:
        main()
