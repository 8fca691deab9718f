"""Inference on a CUDA device: the optimized model against eager and ``torch.compile`` in channels_last.

    python -m benchmarks.gpu

Needs no installation: runs from the repository root with the machine's own torch and timm. Prints a table and writes
``results/gpu.json``; stops adding models after four minutes.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from rewrite import optimize
from tests.corpus import input_for, load, randomize

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = ("repvgg_a0", "resnet18", "mobileone_s0", "fastvit_t8", "repvit_m0_9", "convnext_atto")
SETTINGS = ((torch.bfloat16, 64), (torch.float32, 1))
SECONDS = 240.0


def contenders(name: str, dtype: torch.dtype, batch: int) -> dict[str, Callable[[], Any]]:
    """The calls to compare for one model."""
    layout = torch.channels_last
    model = randomize(load(name)).to("cuda", dtype, memory_format=layout)
    x = input_for(model, batch).to("cuda", dtype, memory_format=layout)
    compiled = torch.compile(model, dynamic=False)
    fast = optimize(model, x)
    return {"eager": lambda: model(x), "compile": lambda: compiled(x), "optimized": lambda: fast(x)}


def main() -> int:
    """Measure, print, save; the exit status says whether every model ran."""
    if not torch.cuda.is_available():
        print("there is no CUDA device here; benchmarks.gpu measures nothing")
        return 1
    rows, failed, started = [], 0, time.perf_counter()
    for name in MODELS:
        for dtype, batch in SETTINGS:
            if time.perf_counter() - started > SECONDS:
                print(f"{name}: left out, the time is up")
                continue
            torch._dynamo.reset()
            try:
                with torch.no_grad():
                    comparison = harness.interleave(contenders(name, dtype, batch), rounds=30, seconds=5.0)
            except Exception as error:  # one failing model must not hide the others' figures
                print(f"{name} {dtype} batch {batch}: {type(error).__name__}: {error}", flush=True)
                failed += 1
                continue
            text = str(dtype).removeprefix("torch.")
            ratio = comparison.ratio("compile", "optimized")
            rows.append(harness.row(f"{name} {text} b{batch}", comparison, speedup=round(ratio, 3)))
    print(harness.save("gpu", rows))
    print(harness.table(rows))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
