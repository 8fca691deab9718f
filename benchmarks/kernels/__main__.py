"""Plans of the published networks for an H200: regions, predicted times, bytes saved, registers; without a GPU.

    python -m benchmarks.kernels

Each region's first kernel is compiled for sm_90. Writes ``results/kernels.json``, in which predictions stand before
anything is measured, and ``results/kernels.md``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.kernels.networks import NETWORKS, flat
from codegen.triton.device import REFERENCE
from codegen.triton.planning import KernelPlan, Planned, planned
from codegen.triton.resources import ARCHITECTURES, Failure, Resources, Workers, fits
from codegen.triton.source import Source
from codegen.triton.waterline import forecast

BATCHES = (1, 32, 128)
DTYPE = torch.bfloat16
RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """Plan, compile, save; the exit status says whether everything fits."""
    rows: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    sources: dict[str, Source] = {}
    for network in NETWORKS:
        for last in (True, False):
            started = time.perf_counter()
            sized = flat(network, DTYPE, last)
            if not last and sized(2).graph.find_nodes(op="placeholder")[0].meta["val"].dim() != 4:
                continue  # sequences have one layout
            for batch in BATCHES:
                module = sized(batch)
                plan = planned(module.graph, REFERENCE)
                title = f"{network.name} b{batch} {'channels last' if last else 'channels first'}"
                rows.append(_row(title, module, plan))
                found: dict[str, dict[str, Any]] = {}
                for each in plan.regions:
                    kernel = each.candidates[0].emit()
                    sources[kernel.source.hash] = kernel.source
                    known = found.setdefault(kernel.source.hash, {"network": title, "count": 0, **_region(each)})
                    known["count"] += 1
                regions += [{"source": name, **region} for name, region in found.items()]
            print(f"{network.name}: {time.perf_counter() - started:.0f} s, {len(sources)} kernels", flush=True)
    compiled = _compiled(sources)
    for region in regions:
        region["sm_90"] = compiled[region["source"]]
    unfit = sorted({text for text in compiled.values() if "not compiled" in text or "needs" in text})
    print(harness.save("kernels", rows, regions=regions, unfit=unfit))
    (RESULTS / "kernels.md").write_text(_table(rows))
    print(_table(rows), *unfit, sep="\n")
    return min(len(unfit), 1)


def _row(title: str, module: torch.fx.GraphModule, plan: KernelPlan) -> dict[str, Any]:
    before = forecast(module.graph, plan, DTYPE, fused=False)
    after = forecast(module.graph, plan, DTYPE, fused=True)
    return {
        "name": title, "device": plan.device.name, "regions": len(plan.regions), "declined": len(plan.declined),
        "unfused_us": round(1e6 * before.seconds, 1), "planned_us": round(1e6 * after.seconds, 1),
        "ratio": round(before.seconds / after.seconds, 3), "saved_mb": round((before.bytes - after.bytes) / 1e6, 1),
        "waterline_before": round(before.attainable, 4), "waterline_after": round(after.attainable, 4),
        "share_of_waterline": round(after.floor / after.seconds, 3),
    }  # fmt: skip


def _region(each: Planned) -> dict[str, Any]:
    return {
        "operators": " ".join(node.name for node in each.region.nodes), "schedules": list(each.candidates[0].schedules),
        "predicted_us": round(1e6 * each.seconds, 2), "parts_us": round(1e6 * each.parts, 2), "bound": each.bound,
        "saved_mb": round(each.saved / 1e6, 3),
    }  # fmt: skip


def _compiled(sources: dict[str, Source]) -> dict[str, str]:
    """What each kernel uses on sm_90, as text."""
    architecture = ARCHITECTURES["sm_90"]
    with Workers(processes=2) as workers:
        found = workers.resources(list(sources.values()), architecture)
    return {name: _used(result, architecture) for name, result in zip(sources, found, strict=True)}


def _used(result: Resources | Failure, architecture: Any) -> str:
    if isinstance(result, Failure):
        return f"not compiled: {result.reason}"
    used = f"{result.registers} registers, {result.shared} bytes shared {result.tensor_cores}".strip()
    reason = fits(result, architecture)
    return f"{reason}; {used}" if reason else used


def _table(rows: list[dict[str, Any]]) -> str:
    head = (
        "network",
        "regions",
        "unfused us",
        "planned us",
        "ratio",
        "MB saved",
        "waterline",
        "with plan",
        "share of it",
    )
    keys = ("name", "regions", "unfused_us", "planned_us", "ratio", "saved_mb", "waterline_before", "waterline_after",
            "share_of_waterline")  # fmt: skip
    lines = ["# Predicted times on an H200, bfloat16", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
