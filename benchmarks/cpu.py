"""Inference on the CPU: the optimized model against eager and ``torch.compile``, both also in channels_last.

    python -m benchmarks.cpu [model ...]

Weights are random and randomised; every contender runs in one process, interleaved. Prints a table and writes
``results/cpu.json``. The last columns say how many times faster the optimized model is than each peer's best.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from benchmarks.peers.inductor import freezing
from rewrite import optimize
from tests.corpus import input_for, load, randomize

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = (
    "resnet18", "repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9", "mobilenetv3_small_050", "convnext_atto",
)  # fmt: skip
BATCH = 4


def contenders(name: str) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """The calls to compare for one model, and the largest difference of each result from eager."""
    model = randomize(load(name))
    x = input_for(model, BATCH)
    last = x.to(memory_format=torch.channels_last)
    model_last = randomize(load(name)).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, dynamic=False)
    frozen = torch.compile(model_last, dynamic=False)
    with freezing():
        frozen(last)
    fast = optimize(model, x)
    calls = {
        "eager": lambda: model(x),
        "eager nhwc": lambda: model_last(last),
        "compile": lambda: compiled(x),
        "compile frozen nhwc": lambda: frozen(last),
        "optimized": lambda: fast(x),
    }
    expected = model(x)
    errors = {key: float((call() - expected).abs().max() / expected.abs().max()) for key, call in calls.items()}
    return calls, errors


def main(names: list[str]) -> None:
    """Measure, print, save."""
    rows = []
    for name in names or MODELS:
        torch._dynamo.reset()
        with torch.no_grad():
            calls, errors = contenders(name)
            comparison = harness.interleave(calls)
        best = min((key for key in calls if key != "optimized"), key=lambda key: comparison.timings[key].median)
        ratio = comparison.ratio(best, "optimized")
        rows.append(harness.row(name, comparison, batch=BATCH, errors=errors, best_peer=best, speedup=round(ratio, 3)))
        print(f"{name}: {ratio:.2f}x the best peer ({best})", flush=True)
    print(harness.table(rows))
    print(harness.save("cpu", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
