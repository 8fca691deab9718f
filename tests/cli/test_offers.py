"""``torch-rewrite offers``."""

from __future__ import annotations

from typing import Any

import torch

from rewrite import offers
from tests.cli.nets import branches

NET = ("offers", "tests.cli.nets:branches", "-i", "2,3,8,8")


def test_every_choice_is_asked(run: Any) -> None:
    torch.manual_seed(0)
    model = branches().eval()
    done = run(*NET)
    assert done.out == f"{offers(model, torch.randn(2, 3, 8, 8))}\n"
    assert "linear-as-convolution" in done.out


def test_what_is_asked_and_what_runs_before(run: Any) -> None:
    found = run(*NET, "--rules", "convolution-as-linear", "--pipeline", "simplify", "--exclude", "norm", "--json").data
    assert found["rules"] == ["convolution-as-linear"]
    assert found["pipeline"] == "simplify"
    assert [item["rule"] for item in found["alternatives"]] == ["convolution-as-linear"]
    assert "did you mean 'merge-support'?" in run(*NET, "--rules", "merge-suport", code=2).error


def test_diffs(run: Any) -> None:
    diff = ("--rules", "convolution-as-linear", "--pipeline", "simplify", "--diff")
    every = run(*NET, *diff, "all").out
    assert every == run(*NET, *diff, "convolution-as-linear").out
    assert every.startswith("@@ convolution-as-linear")
    error = run(*NET, *diff, "space-to-batch", code=2).error
    assert "'space-to-batch' offers nothing in this model; rules that do: convolution-as-linear" in error


def test_refusals(run: Any) -> None:
    torch.manual_seed(0)
    found = offers(branches().eval(), torch.randn(2, 3, 8, 8))
    assert found.refused
    assert run(*NET, "--refusals").out == f"{found.refusals()}\n"
    assert "--json and --refusals are given" in run(*NET, "--refusals", "--json", code=2).error
