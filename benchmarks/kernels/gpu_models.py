"""Whole networks on a GPU: a program that compiles one of them for some batches, and measures when it is its turn.

    python -m benchmarks.kernels.gpu_models LOCK NAME BATCH ... [max-autotune]

is started by ``benchmarks.gpu``. Contenders run with the time that it takes to launch their kernels, as users call
them, and from CUDA graphs, without.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.kernels.comparing import distance, flat
from benchmarks.kernels.measuring import Graphs, said
from benchmarks.kernels.programs import Teller
from rewrite import optimize
from rewrite.target import Target
from tests.corpus import input_for, load, randomize

MODELS = (
    "convnext_tiny", "inception_next_tiny", "mobilenetv2_100", "mixnet_s", "convnext_atto", "repvgg_a0", "resnet18",
    "mobilenetv3_small_050", "mobileone_s0", "fastvit_t8", "repvit_m0_9",
)  # fmt: skip
"""Those with depthwise convolutions first; RepVGG and ResNet have none, and show what else makes a difference."""

BATCHES = (32, 1, 128)
DTYPE = torch.bfloat16

GRAPH = ", graph"
"""What the names of contenders end with that run from a CUDA graph."""

OURS = "optimized"

AUTOTUNED = "max-autotune"
"""The contender that takes minutes to compile: a program of its own, for which there may be no time."""

Call = Callable[[], Any]


class Subject:
    """A network, and what was made of it.

    Args:
        model: on its device.
        example: a function of the batch that draws an input.
    """

    def __init__(self, model: nn.Module, example: Callable[[int], Tensor]):
        self.last = model.to(memory_format=torch.channels_last)
        self.first = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self.example = example
        self.fast: Any = None

    def calls(self, batch: int) -> dict[str, Call]:
        """The contenders as users call them, compiled as they are first called."""
        x = self.example(batch).to(memory_format=torch.channels_last)
        flat_x = x.contiguous()
        torch.compiler.reset()
        compiled = torch.compile(self.last, dynamic=False)
        graphed = torch.compile(self.last, dynamic=False, mode="reduce-overhead")

        def ours() -> Any:
            if self.fast is None:
                self.fast = optimize(self.last, x)
            return self.fast(x)

        return {
            OURS: ours, "eager last": lambda: self.last(x), "eager first": lambda: self.first(flat_x),
            "compile": lambda: compiled(x), "reduce-overhead": lambda: graphed(x),
        }  # fmt: skip


def prepared(calls: Mapping[str, Call], record: Callable[[Call], Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Contenders that have run, and the same from graphs; the reasons why others do not run.

    Args:
        calls: by name; ``reduce-overhead`` has graphs of its own.
        record: a call as a graph.
    """
    found: dict[str, Call] = {}
    failures: dict[str, str] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            found[name] = call
            if name != "reduce-overhead":
                failures_name = name + GRAPH
                found[failures_name] = record(call)
        except Exception as error:  # others' compilers raise anything
            failures[name + GRAPH if name in found else name] = said(error)
    return found, failures


def measured(
    name: str, batch: int, calls: Mapping[str, Call], failures: Mapping[str, str], exact: Tensor, seconds: float = 4.0
) -> dict[str, Any]:
    """The row of one network and batch."""
    comparison = harness.interleave(calls, rounds=30, seconds=seconds)
    medians = {key: timing.median for key, timing in comparison.timings.items()}
    more: dict[str, Any] = {"batch": batch, "failures": dict(failures)}
    if OURS in calls:
        more["error"] = round(distance(flat(calls[OURS]()), [exact]), 5)
    more.update(ratios(medians))
    return harness.row(f"{name} b{batch}", comparison, **more)


def ratios(medians: Mapping[str, float]) -> dict[str, Any]:
    """How many times faster the optimized network is than the fastest of the others, as it is called and in graphs."""
    found: dict[str, Any] = {}
    for key, ours in (("plain", OURS), ("graph", OURS + GRAPH)):
        graph = key == "graph"
        graphs = {name: name.endswith(GRAPH) or name == "reduce-overhead" for name in medians}
        others = {name: medians[name] for name in medians if not name.startswith(OURS) and graphs[name] == graph}
        if ours in medians and others:
            best = min(others, key=others.__getitem__)
            found[key] = {"best": best, "ratio": round(others[best] / medians[ours], 3)}
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row: milliseconds of the optimized network and of the fastest other, and their ratio."""
    other = f"{'best other ms':>26}{'x':>7}"
    lines = [f"{'network':30}{'kernels':>8}{'ms':>9}{other}{'ms graph':>10}{other}"]
    for row in rows:
        line = f"{row['model']:30}{row.get('kernels', 0):8}"
        for key, ours in (("plain", OURS), ("graph", OURS + GRAPH)):
            width = 10 if key == "graph" else 9
            if key not in row:
                line += " " * (width + 33)
                continue
            best = row[key]["best"]
            line += (
                f"{row['ms'][ours]['median']:{width}.3f}{best.removesuffix(GRAPH):>17}{row['ms'][best]['median']:9.3f}"
            )
            line += f"{row[key]['ratio']:7.2f}"
        lines.append(line)
    return "\n".join(lines)


def share_measurements(path: str) -> None:
    """Let no two programs measure kernels at the same time, as they are lowered: both would be disturbed."""
    alone = Target.measure
    held: list[bool] = []

    def measure(self: Target, *args: Any, **kwargs: Any) -> Any:
        if held:  # by a measurement that asks for another one
            return alone(self, *args, **kwargs)
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held.append(True)
            try:
                return alone(self, *args, **kwargs)
            finally:
                held.clear()

    Target.measure = measure  # type: ignore[method-assign]


def autotuned(subject: Subject, batch: int) -> dict[str, Call]:
    """The optimized network beside what Inductor makes of it where it takes its time."""
    x = subject.example(batch).to(memory_format=torch.channels_last)
    made = torch.compile(subject.last, dynamic=False, mode="max-autotune-no-cudagraphs")
    return {OURS: subject.calls(batch)[OURS], AUTOTUNED: lambda: made(x)}


def main(lock: str, name: str, batches: Sequence[int], slowly: bool = False, device: str = "cuda") -> int:
    """Measure one network; ``slowly`` beside :data:`AUTOTUNED` alone."""
    teller = Teller()
    share_measurements(lock)
    torch.backends.cudnn.benchmark = True
    started = time.perf_counter()
    with torch.no_grad():
        model = randomize(load(name)).to(device, DTYPE)
        subject = Subject(model, lambda batch: input_for(model, batch).to(device, DTYPE))
        title = f"{name} {AUTOTUNED}" if slowly else name
        for batch in batches:
            try:
                clock = Graphs()
                calls = autotuned(subject, batch) if slowly else subject.calls(batch)
                found, failures = prepared(calls, lambda call, clock=clock: clock.record(call, 1, False))  # type: ignore[misc]
                exact = subject.last(subject.example(batch).to(memory_format=torch.channels_last))
                teller.tell(ready=title)
                teller.wait()
                row = measured(title, batch, found, failures, exact)
                lowered = subject.fast.lowerings if subject.fast is not None else ()
                told = [str(kernel) for kernel in lowered[-1].kernels] if lowered else []
                row |= {"kernels": len(told), "descriptions": told, "seconds": round(time.perf_counter() - started, 1)}
                teller.tell(row=row)
            except EOFError:
                return 0
            except Exception as error:  # another batch may work
                teller.tell(failed=f"batch {batch}: {said(error)}")
            finally:
                with contextlib.suppress(Exception):
                    torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    given = sys.argv[3:]
    sys.exit(main(*sys.argv[1:3], [int(each) for each in given if each.isdigit()], AUTOTUNED in given))
