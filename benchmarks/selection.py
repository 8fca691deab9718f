"""Is what is chosen the fastest? A grid of layers, each with every alternative by name, timed by torch's own timer.

    python -m benchmarks.selection [eager|inductor]

A case is one layer in one layout. The program that ``optimize`` chooses is timed beside the programs that each
alternative gives by name, with ``torch.utils.benchmark``, which shares no code with what chooses. Writes
``results/selection.json``: for each case the times, what was chosen, and how much slower that is than the best.
"""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from benchmarks import harness
from rewrite import optimize

ALTERNATIVES = (
    "linear-as-convolution", "conv1d-as-conv2d", "fft-convolution{saving=0.0}", "explicit-padding",
    "depthwise-channels-first", "channels-last", "channels-first",
)  # fmt: skip
WITHIN = 0.10
"""How much slower than the best what is chosen may be."""


@dataclass(frozen=True)
class Case:
    """A layer and its input.

    Attributes:
        name: what tells it from the others.
        layer: builds it.
        shape: of the input, ``[N, C, *size]``.
        last: whether the input has its channels last in memory.
    """

    name: str
    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]
    last: bool

    def input(self) -> Tensor:
        """A drawn input."""
        x = torch.randn(self.shape)
        if not self.last:
            return x
        dims = x.dim()
        return x.permute(0, *range(2, dims), 1).contiguous().permute(0, dims - 1, *range(1, dims - 1))


class Channels(nn.Module):
    """A linear layer over the channels of ``[N, C, H, W]``."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 2 C, H, W]``."""
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def cases(small: bool) -> Iterator[Case]:
    """The grid; a small one where every program has to be compiled."""
    kernels, sizes, widths = ((7, 13, 31), (28,), (64,)) if small else ((3, 7, 13, 15, 31), (14, 56), (64,))
    for k, size, c, last in itertools.product(kernels, sizes, widths, (False, True)):
        yield Case(f"depthwise {k}x{k}", lambda c=c, k=k: nn.Conv2d(c, c, k, padding=k // 2, groups=c),
                   (2, c, size, size), last)  # fmt: skip
    lengths = (2048,) if small else (1024, 8192)
    for k, length, last in itertools.product((31, 255) if small else (4, 31, 127, 511), lengths, (False, True)):
        yield Case(f"depthwise {k}", lambda k=k: nn.Conv1d(64, 64, k, padding=k // 2, groups=64), (2, 64, length), last)
    for k, c, last in itertools.product((1, 3, 5), (32,) if small else (32, 128), (False, True)):
        yield Case(f"dense {k}x{k}", lambda c=c, k=k: nn.Conv2d(c, c, k, padding=k // 2), (2, c, 28, 28), last)
    for size, c, last in itertools.product((14,) if small else (7, 28), (96, 384), (False, True)):
        yield Case("linear", lambda c=c: Channels(c), (2, c, size, size), last)


def milliseconds(call: Callable[[Tensor], Any], x: Tensor) -> float:
    """The median time of a call."""
    with torch.no_grad():
        call(x)
        measured = Timer("call(x)", globals={"call": call, "x": x}, num_threads=torch.get_num_threads())
        return 1e3 * float(measured.adaptive_autorange(min_run_time=0.05, max_run_time=0.5).median)


def study(case: Case, lower: str) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    model, x = case.layer().eval(), case.input()
    options: dict[str, Any] = {"lower": lower, "cache": False, "verify": "off"}
    programs = {"": optimize(model, x, pipeline="simplify", tune="off", **options)}
    for rule in ALTERNATIVES:
        found = optimize(model, x, pipeline=f"simplify, {rule}, simplify, fold-constants", tune="off", **options)
        if any(commit.rule == rule.partition("{")[0] for record in found.report.records for commit in record.commits):
            programs[rule.partition("{")[0]] = found
    chosen = optimize(model, x, tune="quick", **options)
    calls = {**programs, "chosen": chosen}
    rounds = [{name: milliseconds(call, x) for name, call in calls.items()} for _ in range(3)]
    ms = {name: min(found[name] for found in rounds) for name in calls}
    best = min(programs, key=ms.__getitem__)
    made = [commit.rule for record in chosen.report.records if record.name == "select" for commit in record.commits]
    return {
        "case": case.name, "shape": list(case.shape), "layout": "last" if case.last else "first", "lower": lower,
        "ms": {name or "as it is": round(value, 4) for name, value in ms.items()}, "best": best or "as it is",
        "chosen": ", ".join(made) or "as it is", "slower": round(ms["chosen"] / min(ms.values()) - 1, 3),
    }  # fmt: skip


def main(lowerings: list[str]) -> None:
    """Measure, print, save."""
    os.environ["TORCH_REWRITE_CACHE"] = "0"
    rows = []
    for lower in lowerings or ["eager", "inductor"]:
        for case in cases(small=lower == "inductor"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows.append(study(case, lower))
            row = rows[-1]
            print(f"{lower} {row['case']} {row['shape']} {row['layout']}: {row['chosen']}, best {row['best']}, "
                  f"{row['slower']:+.1%}", flush=True)  # fmt: skip
        ours = [row for row in rows if row["lower"] == lower]
        right = sum(row["slower"] <= WITHIN for row in ours)
        print(f"{lower}: {right} of {len(ours)} within {WITHIN:.0%} of the best ({right / len(ours):.1%})")
    print(harness.save("selection", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
