"""``torch-rewrite optimize``: what it prints, and what it writes."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import codegen
import passes
from rewrite import Plan, load, optimize
from rewrite.report import Report
from tests.cli.nets import branches
from tests.result.programs import close

if TYPE_CHECKING:
    from pathlib import Path

NET = ("optimize", "tests.cli.nets:branches", "--input", "2,3,8,8")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The model that the command makes, from the same seed."""
    torch.manual_seed(0)
    return branches().eval()


@pytest.fixture(scope="module")
def report(model: nn.Module) -> Report:
    return optimize(model, torch.randn(2, 3, 8, 8), lower="eager").report


def test_the_report_is_on_stdout_and_progress_is_not(run: Any) -> None:
    done = run(*NET)
    assert done.out.startswith("Branches (torch-rewrite ")
    assert re.search(r"merge-branches +1 +1 ", done.out)
    assert "agrees with the source" in done.out
    first, *phases = done.err.splitlines()
    assert first == "tests.cli.nets:branches: Branches with 146 parameters, in evaluation mode, on f32[2, 3, 8, 8]"
    assert phases[0].startswith("Branches: captured in ")
    assert any(line.startswith("reparameterize: 1 commit, 0 refused") for line in phases)
    assert phases[-1] == "Branches: the whole model agrees with the source"


def test_quiet(run: Any) -> None:
    assert run(*NET, "-q", "--verify", "off").err == ""


def test_data(run: Any) -> None:
    done = run(*NET, "--json")
    assert done.data["model"] == "Branches"
    assert Report.from_dict(done.data).model_verdict.accepted
    assert [step["step"] for step in done.data["steps"]] == [step.name for step in passes.default_pipeline()]


def test_how_much_is_verified(run: Any) -> None:
    draws = {
        level: sum(step["draws"] for step in run(*NET, "--json", "--verify", level).data["steps"])
        for level in ("off", "default", "thorough")
    }
    assert 0 == draws["off"] < draws["default"] < draws["thorough"]


def test_diffs(run: Any, report: Report) -> None:
    assert run(*NET, "--diff", "merge-branches").out == f"{report.diff('merge-branches')}\n"
    every = run(*NET, "--diff", "all", "--verify", "off").out
    assert sum(line.startswith("@@") for line in every.splitlines()) == 3
    assert "'merge-brunches'" in run(*NET, "--diff", "merge-brunches", code=2).error


def test_a_rewrite_as_a_script(run: Any, report: Report) -> None:
    done = run(*NET, "--reproduce", 1)
    assert done.out.rstrip("\n") == report.reproduce(1).rstrip("\n")
    compile(done.out, "rewrite_1.py", "exec")
    assert "4" in run(*NET, "--reproduce", 4, "--verify", "off", code=2).error


def test_what_is_rewritten(run: Any) -> None:
    def rules(*options: object) -> list[str]:
        steps = run(*NET, "--json", "--verify", "off", *options).data["steps"]
        return [commit["rule"] for step in steps for commit in step["commits"]]

    assert rules() == ["merge-branches", "fold-constants", "fold-constants"]
    assert rules("--fuel", 1) == ["merge-branches"]
    assert rules("--pipeline", "fold-batch-norm") == ["fold-batch-norm-after"]
    assert rules("--exclude", "merge-branches", "--exclude", "fold-constants") == ["fold-batch-norm-after"]
    assert rules("--exclude", "norm") == []


def test_a_method(run: Any) -> None:
    assert run(*NET, "--method", "features", "--json", "--verify", "off").data["model"] == "Branches.features"


def test_a_saved_result_computes_what_the_model_does(run: Any, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.rewrite"
    done = run(*NET, "--save", path)
    assert done.err.splitlines()[-1].startswith(f"{path} written, ")
    x = torch.randn(5, 3, 8, 8)
    assert close(load(path, lower="eager")(x), model(x))


def test_a_plan_is_followed(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    run(*NET, "--fuel", 1, "--save-plan", path, "--verify", "off")
    assert len(Plan.from_json(path.read_text()).decisions) == 1
    again = run(*NET, "--plan", path, "--json").data
    made = {step["step"]: len(step["commits"]) for step in again["steps"] if step["commits"]}
    assert made == {"reparameterize": 1}
    assert again["notes"] == ["the rewrites are those of a plan, and nothing else was looked for"]
    assert "is for another program" in run(*NET[:2], "-i", "1,3,9,9", "--plan", path, code=2).error
    assert "plan= and fuel= are given" in run(*NET, "--plan", path, "--fuel", 1, code=2).error
    path.write_bytes(b"\xff\x00")
    assert "the plan is not JSON" in run(*NET, "--plan", path, code=2).error


@pytest.mark.parametrize("suffix", ["txt", "json", "html"])
def test_a_report_in_a_file(run: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"report.{suffix}"
    done = run(*NET, "--report", path)
    text = path.read_text()
    match suffix:
        case "txt":
            assert text == done.out
        case "json":
            assert json.loads(text)["model"] == "Branches"
        case "html":
            assert text.startswith("<!doctype html>")
            assert "<title>Branches, rewritten</title>" in text
            assert "nothing was refused" in text
            assert "merge-branches #1" in text
            assert "{" not in text.partition("</style>")[2].partition("<h2>")[0]


def test_lowering_and_speed(run: Any) -> None:
    done = run(*NET, "--lower", "eager", "--verify", "off")
    assert "lowering" in done.out
    assert "speed" not in done.out
    assert "eager compiled for [[2, 3, 8, 8]]" in done.err
    assert "lowering" not in run(*NET, "--verify", "off").out
    assert "speed  the model" in run(*NET, "--lower", "eager", "--compare", "--verify", "off").out
    found = run(*NET, "--lower", "eager", "--compare", "--json", "--verify", "off").data["comparison"]
    assert set(found["timings"]) == {"model", "result"}
    assert found["timings"]["result"]["median"] > 0


def test_the_fastest_lowering_is_named_with_its_time(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen.fastest.candidates", lambda *settings: {"eager": codegen.Eager()})
    text = run(*NET, "--lower", "fastest", "--compare", "--verify", "off").out
    assert re.search(r"ms on\s+fastest: eager \([\d.]+ ms\): [\d.]+x", re.sub(r"\s+", " ", text))


def test_the_cache_is_used_unless_it_is_not_wanted(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path))
    run(*NET, "--no-cache")
    assert not os.listdir(tmp_path)
    run(*NET)
    assert os.listdir(tmp_path)
    assert "restored from the cache" in run(*NET).out


def test_files_are_checked_before_the_work(run: Any, tmp_path: Path) -> None:
    lost = tmp_path / "lost" / "net.rewrite"
    done = run(*NET, "--save", lost, code=2)
    assert done.error == f"'{lost}' cannot be written: there is no directory '{lost.parent}'; make it first"
    assert len(done.err.splitlines()) == 1
    assert "is a directory" in run(*NET, "--report", tmp_path, code=2).error
    assert f"'{tmp_path / 'none'}': No such file" in run(*NET, "--plan", tmp_path / "none", code=2).error


def test_one_thing_at_a_time_on_stdout(run: Any) -> None:
    assert "--json and --reproduce are given" in run(*NET, "--json", "--reproduce", 1, code=2).error
