"""``torch.compile(backend="torch_rewrite")`` against ``backend="inductor"`` and eager, on the CPU.

    python -m benchmarks.backend [model ...]

Three situations: inference under ``no_grad``, a forward and backward pass in evaluation mode (gradients on, norms
fixed), and one in training mode. Weights are random and randomised; the contenders of a row run interleaved in one
process. Prints a table and writes ``results/backend.json``. A row whose process crashed says so: on some processors
torch 2.13 corrupts memory in the weight gradient of a strided 1x1 convolution of three channels in channels_last, which
Inductor uses for the branches of repvgg_a0 and mobileone_s0.
"""

from __future__ import annotations

import json
import subprocess
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
CONTENDERS = {"eager": None, "inductor": "inductor", "torch_rewrite": torch_rewrite}


def measure(name: str, situation: str) -> dict[str, Any]:
    """One row."""
    make, training = SITUATIONS[situation]
    calls = {}
    for contender, backend in CONTENDERS.items():
        # models of their own, so that gradients and statistics do not meet
        model = randomize(load(name)).train(training)
        calls[contender] = make(model, input_for(model, BATCH), backend)
        calls[contender]()
    comparison = harness.interleave(calls)
    best = min(("eager", "inductor"), key=lambda key: comparison.timings[key].median)
    ratio = round(comparison.ratio(best, "torch_rewrite"), 3)
    return harness.row(f"{name}, {situation}", comparison, batch=BATCH, best_peer=best, speedup=ratio)


def isolated(name: str, situation: str) -> dict[str, Any]:
    """One row, measured in a process of its own: compiled code may crash, a peer's too."""
    command = [sys.executable, "-m", "benchmarks.backend", "--one", name, situation]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"model": f"{name}, {situation}", "ms": {}, "noise": 0.0, "crashed": done.returncode}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(names: list[str]) -> None:
    """Measure, print, save."""
    rows = []
    for name in names or MODELS:
        for situation in SITUATIONS:
            rows.append(isolated(name, situation))
            print({key: value for key, value in rows[-1].items() if key != "ms"}, flush=True)
    print(harness.table(rows))
    print(harness.save("backend", rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main(sys.argv[1:])
