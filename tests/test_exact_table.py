"""The table of what the exact rules apply, refuse and offer, rule by model: ``benchmarks/results/exact.json``.

After an intended change ``python -m benchmarks.exact [model ...]`` writes it anew; then read what git says.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import exact
from benchmarks.corpus import NAMES, networks

QUICK = ("convnext_atto",)
ROWS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NAMES]

pytestmark = pytest.mark.corpus


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_the_rules_do(name: str) -> None:
    [(_, model, inputs)] = networks([name])
    with torch.no_grad():
        row = exact.study(name, model, inputs)
    recorded = exact.recorded()[name]
    for part in ("applied", "refused", "offered"):
        assert row[part] == recorded[part]


def test_the_table_holds_the_corpus() -> None:
    rows = exact.recorded()
    assert list(rows) == list(NAMES)
    markdown = (exact.harness.RESULTS / "exact.md").read_text()
    assert markdown == exact.page(list(rows.values()))
