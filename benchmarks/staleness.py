"""What it costs at each call to notice that weights have changed.

    python -m benchmarks.staleness

Prints JSON: microseconds for 300 tensors, in all and by part, and the seconds of a refold. The minimum of many repeats
is taken: this is the work of the check, without what else the machine does.
"""

from __future__ import annotations

import json
import time
import timeit
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks import harness
from rewrite import optimize
from rewrite.result.staleness import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = 43
"""Each layer has seven tensors: a kernel, four of the norm, its counter, and one bias."""


class Stack(nn.Module):
    """Convolutions and norms, 301 parameters and buffers in all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
                  for _ in range(LAYERS)]  # fmt: skip
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def microseconds(call: Callable[[], Any], number: int = 10) -> float:
    """The fastest of 200 repeats, each short enough not to be interrupted."""
    return round(1e6 * min(timeit.repeat(call, number=number, repeat=200 if number > 1 else 60)) / number, 2)


def measure(channels: int) -> dict[str, Any]:
    """The check by itself and its parts, the whole overhead of a call, and the refold."""
    model = Stack(channels).eval()
    x = torch.randn(1, channels, 8, 8)
    watch = Watch(model)
    row: dict[str, Any] = {
        "tensors": len([*model.parameters(), *model.buffers()]),
        "elements": sum(parameter.numel() for parameter in model.parameters()),
        "watched_bytes": len(watch._probe._remembered),
        "check_us": microseconds(watch.changed),
        "versions_us": microseconds(lambda: [tensor._version for tensor in watch._versioned] != watch._versions),
        "holdings_us": microseconds(watch._holdings.changed),
        "probe_us": microseconds(watch._probe.changed),
    }
    fast = optimize(model, x, verify="off", lower="eager")
    with torch.no_grad():
        fast(x)
        (plan,) = fast._engine._snapshot.plans.values()
        weights = fast._engine._snapshot.weights[plan.special].plain
        bare = microseconds(lambda: plan.run([x], weights), 1)
        row["call_us"], row["program_us"] = microseconds(lambda: fast(x), 1), bare
        started = time.perf_counter()
        fast.refold()
        row["refold_s"] = round(time.perf_counter() - started, 4)
    started = time.perf_counter()
    Watch(model)
    row["watch_s"] = round(time.perf_counter() - started, 4)
    return row


def main() -> None:
    """Measure, print, save."""
    torch.set_num_threads(1)
    rows = [measure(channels) for channels in (8, 256)]
    print(json.dumps({"environment": harness.environment(), "rows": rows}, indent=1))
    harness.save("staleness", rows)


if __name__ == "__main__":
    main()
