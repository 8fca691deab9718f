"""``torch-rewrite filters``."""

from __future__ import annotations

from typing import Any

import torch

from rewrite import filters
from tests.cli.nets import branches

NET = ("filters", "tests.cli.nets:branches", "-i", "2,3,8,8")


def test_before_and_after(run: Any) -> None:
    torch.manual_seed(0)
    model = branches().eval()
    found = filters(model, torch.randn(2, 3, 8, 8))
    assert run(*NET).out == f"{found}\n"
    assert run(*NET, "--json").data == found.to_dict()
    assert [len(found.before), len(found.after or ())] == [2, 1]


def test_what_runs(run: Any) -> None:
    data = run(*NET, "--pipeline", "simplify", "--exclude", "norm", "--json").data
    assert data["pipeline"] == "simplify"
    assert data["after"] == data["before"]
    assert run(*NET, "--method", "head", code=2).error
