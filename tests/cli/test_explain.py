"""``torch-rewrite explain``."""

from __future__ import annotations

from typing import Any

import torch

from rewrite import explain
from tests.cli.nets import branches

NET = ("explain", "tests.cli.nets:branches", "-i", "2,3,8,8")


def test_an_explanation(run: Any) -> None:
    torch.manual_seed(0)
    model = branches().eval()
    done = run(*NET)
    assert done.out == f"{explain(model, torch.randn(2, 3, 8, 8))}\n"
    assert "in evaluation mode" in done.err


def test_a_model_in_training_mode(run: Any) -> None:
    done = run(*NET, "--train")
    assert "in training mode" in done.err
    assert "because  the norm uses batch statistics" in done.out
    assert "remedy  call eval() on 'norm'" in done.out


def test_one_rule(run: Any) -> None:
    found = run(*NET, "--rule", "fold-layer-scale", "--json").data
    assert [rule["rule"] for rule in found["coverage"]] == ["fold-layer-scale"]
    assert "is no rule or pass; did you mean 'fold-layer-scale'?" in run(*NET, "--rule", "layer-scale", code=2).error


def test_what_runs_before(run: Any) -> None:
    found = run(*NET, "--pipeline", "fold-batch-norm", "--exclude", "norm", "--verify", "off", "--json").data
    assert found["pipeline"] == "fold-batch-norm"
    assert [finding["reason"] for finding in found["findings"]] == ["module 'norm' is excluded"]


def test_keyword_arguments_and_a_method(run: Any) -> None:
    assert run("explain", "tests.cli.nets:Tokens", "-i", "1,5:int64", "-i", "mask=1,5:bool", "--json").data
    assert run(*NET, "--method", "features", "--json").data["model"] == "Branches.features"
