"""``torch.compile(backend="torch_rewrite")`` against ``backend="inductor"`` and eager, on the CPU.

    python -m benchmarks.backend [model ...]

Three situations: inference under ``no_grad``, a forward and backward pass in evaluation mode (gradients on, norms
fixed), and one in training mode. Weights are random and randomised; the contenders run interleaved in one process.
Prints a table and writes ``results/backend.json``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from rewrite.backend import torch_rewrite
from tests.corpus import input_for, load, randomize

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

MODELS = ("resnet18", "repvgg_a0", "mobileone_s0", "mobilenetv3_small_050", "convnext_atto")
BATCH = 4


def inference(model: nn.Module, x: Tensor, backend: Any) -> Callable[[], Any]:
    """A call without gradients."""
    call = model if backend is None else torch.compile(model, backend=backend, dynamic=False)

    def run() -> Any:
        with torch.no_grad():
            return call(x)

    return run


def step(model: nn.Module, x: Tensor, backend: Any) -> Callable[[], Any]:
    """A forward and a backward pass, in the mode of the model."""
    call = model if backend is None else torch.compile(model, backend=backend, dynamic=False)

    def run() -> Any:
        model.zero_grad(set_to_none=True)
        loss = call(x).square().mean()
        loss.backward()
        return loss

    return run


SITUATIONS = {"inference": (inference, False), "evaluation, gradients": (step, False), "training": (step, True)}


def main(names: list[str]) -> None:
    """Measure, print, save."""
    rows = []
    for name in names or MODELS:
        for situation, (make, training) in SITUATIONS.items():
            torch._dynamo.reset()
            calls = {}
            for contender, backend in (("eager", None), ("inductor", "inductor"), ("torch_rewrite", torch_rewrite)):
                # models of their own, so that gradients and statistics do not meet
                model = randomize(load(name)).train(training)
                calls[contender] = make(model, input_for(model, BATCH), backend)
                calls[contender]()
            comparison = harness.interleave(calls)
            best = min(("eager", "inductor"), key=lambda key: comparison.timings[key].median)
            ratio = comparison.ratio(best, "torch_rewrite")
            rows.append(harness.row(f"{name}, {situation}", comparison, batch=BATCH, best_peer=best,
                                    speedup=round(ratio, 3)))  # fmt: skip
            print(f"{name}, {situation}: {ratio:.2f}x the best peer ({best})", flush=True)
    print(harness.table(rows))
    print(harness.save("backend", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
