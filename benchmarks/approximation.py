"""Are the predicted errors of approximations those that are measured? Networks of timm with random weights.

    python -m benchmarks.approximation [names of networks]

For each network and rule every site is approximated alone by one of its options, and by what ``approximate`` takes
within an error of the outputs. Writes ``results/approximation.json`` and ``.md``: the errors that are predicted and
those that are measured on held-out data, at the sites and at the outputs, how many agree within a factor of three,
their rank correlation, and what the calibration took. An error at the outputs is predicted from how much of an error
at the site reached them for one option of the site, and so is no prediction where that option itself was taken.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import harness
from rewrite import approximate
from tests import corpus

RULES = {
    "convnext_atto": "inception", "mixnet_s": "inception", "resnet18": "prune-filters", "mobilenetv3_small_100":
    "inception, prune-filters", "repvgg_a0": "prune-filters", "vit_tiny_patch16_224": "prune-filters",
}  # fmt: skip
BATCHES, SAMPLES = 6, 4
BUDGET = 0.1


def images(samples: int, seed: int) -> Tensor:
    """In which neighbours are alike, as in photographs."""
    noise = torch.randn(samples, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 7, 1, 3) * 7


def network(name: str) -> nn.Module:
    """With random weights, norms and scales among them."""
    model = corpus.load(name).eval()
    corpus.randomize(model)
    return model


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's."""
    ranks = torch.tensor(pairs, dtype=torch.float64).argsort(0).argsort(0).double()
    return float(torch.corrcoef(ranks.T)[0, 1]) if len(pairs) > 2 else float("nan")


def agreement(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Of predicted and measured errors."""
    near = [a for a, b in pairs if b > 0 and 1 / 3 <= a / b <= 3]
    return {"pairs": len(pairs), "within a factor of three": len(near), "rank correlation": rank_correlation(pairs)}


def measured(name: str, rules: str) -> dict[str, Any]:
    """One network."""
    model = network(name)
    began = time.perf_counter()
    student = approximate(model, (images(SAMPLES, seed) for seed in range(BATCHES)), rules, max_error=BUDGET)
    spent = time.perf_counter() - began
    ledger = student.ledger
    tried = [entry for entry in ledger if entry.measured is not None and entry.measured_drift is not None]
    fresh = images(SAMPLES, 1000)
    with torch.no_grad():
        wanted, found = model(fresh), student(fresh)
    return {
        "network": name, "rules": rules, "sites": len(ledger), "taken": len(ledger.taken),
        "site errors": agreement([(entry.predicted, entry.measured or 0.0) for entry in tried]),
        "output errors": agreement([(entry.predicted_drift, entry.measured_drift or 0.0) for entry in tried]),
        "budget": BUDGET, "held out": ledger.drift, "fresh": float((found - wanted).norm() / wanted.norm()),
        "flops": [ledger.before.flops, ledger.after.flops], "parameters": list(ledger.parameters),
        "nominal seconds": [ledger.before.seconds, ledger.after.seconds],
        "seconds": spent, "phases": ledger.seconds,
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "ledger": [asdict(entry) for entry in ledger],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    head = ("network", "rules", "sites", "taken", "site errors within 3x", "rank", "output errors within 3x", "rank",
            "error, held out", "error, fresh", "FLOPs", "parameters", "seconds", "GB")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        site, output = row["site errors"], row["output errors"]
        cells = (
            row["network"], row["rules"], row["sites"], row["taken"],
            f"{site['within a factor of three']} of {site['pairs']}", f"{site['rank correlation']:.2f}",
            f"{output['within a factor of three']} of {output['pairs']}", f"{output['rank correlation']:.2f}",
            f"{row['held out']:.3f}", f"{row['fresh']:.3f}", f"{100 * (row['flops'][1] / row['flops'][0] - 1):+.0f} %",
            f"{100 * (row['parameters'][1] / row['parameters'][0] - 1):+.0f} %", f"{row['seconds']:.0f}",
            f"{row['peak memory'] / 1e9:.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    rows = []
    for name in names or RULES:
        rows.append(measured(name, RULES[name]))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(harness.save("approximation", rows, batches=BATCHES, samples=SAMPLES))
    (harness.RESULTS / "approximation.md").write_text(
        f"# Approximations of timm networks with random weights\n\n{BATCHES} batches of {SAMPLES}, within {BUDGET} of "
        f"the outputs.\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
