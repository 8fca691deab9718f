"""Optimize a real model, look at what was done, and compare its speed with eager and ``torch.compile``.

python examples/demo.py [timm model]        (default: repvgg_a0, in its training form)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

from benchmarks import harness
from rewrite import optimize
from tests.corpus import input_for, load, randomize


def main(name: str = "repvgg_a0") -> None:
    # Random weights, because no download is needed then; norms and scales are spread so that every branch counts.
    model = randomize(load(name))
    x = input_for(model, batch=4)

    fast = optimize(model, x)

    print(fast.report)
    print("\nThe first rewrite of each rule, of", sum(len(step.commits) for step in fast.report.records), "in all:\n")
    for rule in dict.fromkeys(commit.rule for step in fast.report.records for commit in step.commits):
        print(fast.report.diff(rule).hunks[0], "\n")

    with torch.no_grad():
        compiled = torch.compile(model, dynamic=False)
        error = (fast(x) - model(x)).abs().max() / model(x).abs().max()
        print(f"Largest difference from the model: {float(error):.1e} of the largest output.\n")
        calls = {"eager": lambda: model(x), "torch.compile": lambda: compiled(x), "optimized": lambda: fast(x)}
        measured = harness.interleave(calls)

    print(f"{name}, batch 4, {torch.get_num_threads()} threads; median of interleaved runs [quartiles]:")
    for contender, timing in measured.timings.items():
        ratio = measured.ratio("eager", contender)
        spread = f"[{timing.low:.2f}, {timing.high:.2f}]"
        print(f"  {contender:14} {timing.median:8.2f} ms  {spread:20} {ratio:.2f}x eager's speed")
    print(f"  eager against itself differs by {measured.noise:.1%}: smaller differences mean nothing")


if __name__ == "__main__":
    main(*sys.argv[1:])
