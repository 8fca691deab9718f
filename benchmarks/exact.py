"""Rule by model: what the exact rules do to the corpus, what they refuse and why, and what choices are offered.

    python -m benchmarks.exact [model ...]

The corpus are the networks of timm in ``tests/corpus.py`` and those of ``examples/models``, in their published sizes,
with random weights that hide nothing. Each match is verified. Writes ``results/exact.json``, with every reason, and
``results/exact.md``, the table. Rewriting time stands beside the time of capture.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import passes
from benchmarks import harness
from examples import models
from rewrite.driver import Driver
from rewrite.offers import offers
from rewrite.pipeline import rules_of
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.corpus import CORPUS, input_for, load, randomize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from rewrite.rule import Rule


def choices() -> list[Rule]:
    """The choices among all steps, with their defaults."""
    return [rule for step in passes.STEPS for rule in rules_of(step()) if rule.choice]


def examples(names: Iterable[str] = ()) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """The networks of the corpus, or those of these names."""
    wanted = list(names) or [*CORPUS, *models.MODELS]
    found: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
    for name in wanted:
        if name in models.MODELS:
            found.append((name, *models.load(name, "published")))
        else:
            model = randomize(load(name))
            found.append((name, model, (input_for(model, 1),)))
    return found


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
    offered = offers(graph, choices(), MatchVerifier())
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


def _cell(row: dict[str, Any], rule: str) -> str:
    parts = [str(row["applied"][rule])] if rule in row["applied"] else []
    refused = sum(row["refused"].get(rule, {}).values())
    parts += [f"{refused} refused"] if refused else []
    parts += [f"{row['offered'][rule]} offered"] if rule in row["offered"] else []
    return ", ".join(parts)


def main(names: list[str]) -> None:
    """Study, print, save."""
    rows = []
    for name, model, inputs in examples(names):
        with torch.no_grad():
            row = study(name, model, inputs)
        rows.append(row)
        print(f"{name}: {sum(row['applied'].values())} rewrites, {sum(row['offered'].values())} offers, "
              f"{row['rewriting_seconds']} s beside {row['capture_seconds']} s of capture", flush=True)  # fmt: skip
    path: Path = harness.save("exact", rows)
    path.with_suffix(".md").write_text(
        "Rewrites by the default pipeline, refusals, and offers of choices, rule by model; "
        "``python -m benchmarks.exact``.\n\n" + table(rows) + "\n"
    )
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
