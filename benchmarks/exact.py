"""Rule by model: what the exact rules do to the corpus, what they refuse and why, and what choices are offered.

    python -m benchmarks.exact [model ...]

Each match is verified. Writes ``results/exact.json``, with every reason, and ``results/exact.md``, the table; the rows
of models that are not named stay as they are. Rewriting time stands beside the time of capture.

The counts are what ``tests/test_exact_table.py`` holds the rules to.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import passes
from benchmarks import harness
from benchmarks.corpus import NAMES, networks
from rewrite.driver import Driver
from rewrite.offering import offers_in
from rewrite.pipeline import ChoicePass, rules_of
from rewrite.trace import capture
from rewrite.verify import MatchVerifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rewrite.rule import Rule


def choices() -> list[Rule]:
    """The choices among all steps, with their defaults."""
    steps = [step() for step in passes.STEPS if not issubclass(step, ChoicePass)]
    return [rule for step in steps for rule in rules_of(step) if rule.choice]


def study(name: str, model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """One row: rewrites by rule, refusals by rule and reason, offers by rule, and seconds."""
    started = time.perf_counter()
    graph = capture(model, inputs).graph
    captured = time.perf_counter()
    records = Driver(graph, MatchVerifier()).run(passes.default_pipeline())
    rewritten = time.perf_counter()
    for record in records:
        for rejection in record.rejections:
            raise AssertionError(f"{name}: {rejection.rule} was rejected: {rejection.reason}")
    graph.eliminate_dead()
    offered = offers_in(graph, choices(), MatchVerifier())
    for failure in offered.failures:
        raise AssertionError(f"{name}: {failure}")
    refused: dict[str, Counter[str]] = {}
    for record in records:
        for miss in record.refused:
            refused.setdefault(miss.rule, Counter())[miss.reason] += 1
    for found in offered.misses:
        refused.setdefault(found.rule, Counter())[found.refusal.reason] += 1
    return {
        "model": name,
        "applied": _sorted(Counter(commit.rule for record in records for commit in record.commits)),
        "refused": {rule: _sorted(reasons) for rule, reasons in sorted(refused.items())},
        "offered": _sorted(Counter(offer.rule.name for offer in offered)),
        "capture_seconds": round(captured - started, 2),
        "rewriting_seconds": round(rewritten - captured, 2),
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line a model, one column a rule; ``applied / refused / offered``, zeros left out."""
    rules = sorted({rule for row in rows for part in ("applied", "refused", "offered") for rule in row[part]})
    lines = ["| model | " + " | ".join(rules) + " | capture s | rewriting s |", "|---" * (len(rules) + 3) + "|"]
    for row in rows:
        cells = [_cell(row, rule) for rule in rules]
        times = f"{row['capture_seconds']} | {row['rewriting_seconds']}"
        lines.append(f"| {row['model']} | " + " | ".join(cells) + f" | {times} |")
    return "\n".join(lines)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table with its heading."""
    return f"{_HEADING}\n\n{table(rows)}\n"


_HEADING = (
    "Rewrites by the default pipeline, refusals, and offers of choices, rule by model; ``python -m benchmarks.exact``."
)


def _cell(row: dict[str, Any], rule: str) -> str:
    parts = [str(row["applied"][rule])] if rule in row["applied"] else []
    refused = sum(row["refused"].get(rule, {}).values())
    parts += [f"{refused} refused"] if refused else []
    parts += [f"{row['offered'][rule]} offered"] if rule in row["offered"] else []
    return ", ".join(parts)


def recorded() -> dict[str, dict[str, Any]]:
    """The rows of ``results/exact.json`` by model."""
    path = harness.RESULTS / "exact.json"
    return {row["model"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def main(names: list[str]) -> None:
    """Study, print, save."""
    rows = recorded() if names else {}
    for name, model, inputs in networks(names):
        with torch.no_grad():
            row = study(name, model, inputs)
        rows[name] = row
        print(f"{name}: {sum(row['applied'].values())} rewrites, {sum(row['offered'].values())} offers, "
              f"{row['rewriting_seconds']} s beside {row['capture_seconds']} s of capture", flush=True)  # fmt: skip
    ordered = [rows[name] for name in NAMES if name in rows]
    path: Path = harness.save("exact", ordered)
    path.with_suffix(".md").write_text(page(ordered))
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
