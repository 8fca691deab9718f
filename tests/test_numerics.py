"""``numerics="elementwise"``: what spreads errors over a tensor does not run, whoever names it, and is named itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import passes
from passes import FftConvolution
from rewrite import (
    BisectionError,
    Fidelity,
    InputError,
    Pipeline,
    Rule,
    backend,
    bisect,
    explain,
    load,
    offers,
    optimize,
    transform,
)
from rewrite.numerics import forbidden
from rewrite.recipe import Recipe
from tests.backend.compiling import compiled
from tests.result.programs import close

if TYPE_CHECKING:
    from pathlib import Path


TEXT = "fft-convolution, fold-constants"
NOTE = 'fft-convolution did not run: numerics="elementwise" forbids rules that do not bound the error of each element'

SAID = re.compile(r'fft-convolution\b.* did not run: numerics="elementwise" forbids')


@pytest.fixture
def model() -> nn.Module:
    """A convolution that takes fewer operations by transforms, and a batch norm behind it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 4, 129, padding=64, groups=4), nn.BatchNorm1d(4)).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 4, 300)


def made(report: Any) -> set[str]:
    return {commit.rule for step in report.records for commit in step.commits}


def eager(model: nn.Module, x: torch.Tensor, **settings: Any) -> Any:
    return optimize(model, x, lower="eager", **{"cache": False, **settings})


def test_what_spreads_errors_runs_where_it_is_named_unless_numerics_forbid_it(model: nn.Module, x: torch.Tensor):
    free, bound = (eager(model, x, pipeline=TEXT, numerics=numerics) for numerics in ("default", "elementwise"))
    assert "fft-convolution" in made(free.report)
    assert not any("did not run" in note for note in free.report.notes)
    assert not made(bound.report)
    assert [note for note in bound.report.notes if note.startswith(NOTE)]
    assert NOTE in str(bound.report).replace("\n      ", " ")
    later = x.clone()
    later[0, 0, 299] = torch.nan
    with torch.no_grad():
        assert free(later)[0, 0].isnan().all()
        assert torch.equal(bound(later).isnan(), model(later).isnan())


def test_of_the_default_pipeline_only_choices_are_forbidden(model: nn.Module, x: torch.Tensor):
    fast = eager(model, x, numerics="elementwise")
    assert "fold-batch-norm-after" in made(fast.report)
    assert forbidden("elementwise", passes.default_pipeline()) == (
        "fft-convolution", "shrink-transform", "winograd-convolution",
    )  # fmt: skip


def test_each_fidelity():
    def rule(name: str, fidelity: Fidelity) -> Rule:
        return type(name, (Rule,), {"fidelity": fidelity})()

    steps = [rule(fidelity.name.title(), fidelity) for fidelity in Fidelity]
    assert forbidden("elementwise", steps) == ("normwise", "approximate", "structural")
    assert forbidden("default", steps) == ()
    recipe = Recipe(Pipeline((FftConvolution(),)), ("norm",), numerics="elementwise")
    assert recipe.exclude == ("norm", "fft-convolution")
    assert recipe.settings().numerics == "elementwise"


@pytest.mark.parametrize("call", [optimize, transform, explain, offers, bisect])
def test_unknown_numerics(call: Any, model: nn.Module, x: torch.Tensor):
    with pytest.raises(InputError, match=r"numerics='exact' is not one of 'default', 'elementwise'"):
        call(model, x, numerics="exact")


def test_transform(model: nn.Module, x: torch.Tensor):
    assert "fft-convolution" in made(transform(model.train(), x, "fft-convolution").report)
    bound = transform(model, x, "fft-convolution", numerics="elementwise").report
    assert not made(bound)
    assert any(note.startswith(NOTE) for note in bound.notes)


def test_explain(model: nn.Module, x: torch.Tensor):
    for rule, pipeline in (("fft-convolution", None), (None, TEXT)):
        found = explain(model, x, rule, pipeline=pipeline, numerics="elementwise")
        assert "fft-convolution" not in {each.rule for each in found.coverage}
        assert [note for note in found.notes if "did not run" in note] == [found.notes[-1]]
        assert found.notes[-1].startswith(NOTE)
    found = explain(model, x, pipeline=TEXT, exclude="fold-constants", numerics="elementwise")
    assert found.notes[-2].startswith("fold-constants did not run: exclude names it")


def test_offers(model: nn.Module, x: torch.Tensor):
    assert "fft-convolution" in {item.rule for item in offers(model, x)}
    found = offers(model, x, numerics="elementwise")
    assert "fft-convolution" not in found.rules
    assert "space-to-batch" in found.rules
    assert any(SAID.search(note) for note in found.notes)


def test_bisect(model: nn.Module, x: torch.Tensor):
    def finite(fast: nn.Module) -> bool:
        given = x.clone()
        given[..., 299] = torch.inf
        with torch.no_grad():
            return bool(fast(given)[..., 0].isfinite().all())

    assert bisect(model, x, finite, pipeline=TEXT).commit.rule == "fft-convolution"
    with pytest.raises(BisectionError, match="makes no rewrite"):
        bisect(model, x, finite, pipeline="fft-convolution", numerics="elementwise")


def test_a_plan_keeps_what_was_forbidden(model: nn.Module, x: torch.Tensor):
    plan = eager(model, x, pipeline=f"default, {TEXT}", numerics="elementwise").plan
    assert plan.exclude == (
        "fft-convolution", "shrink-transform", "winograd-convolution",
    )  # fmt: skip
    again = eager(model, x, plan=plan.to_json())
    assert again.plan == plan
    assert "fft-convolution" not in made(again.report)
    with pytest.raises(InputError, match="plan= and numerics= are given"):
        eager(model, x, plan=plan, numerics="elementwise")
    assert eager(model, x, plan=plan, numerics="default").plan == plan


def test_a_saved_result_makes_other_programs_so_too(model: nn.Module, x: torch.Tensor, tmp_path: Path):
    eager(model, x, pipeline=TEXT, numerics="elementwise").save(tmp_path / "net")
    found = load(tmp_path / "net", model, lower="eager")
    longer = torch.randn(2, 4, 400)
    with torch.no_grad():
        assert close(found(longer), model(longer))
    specials = list(found._engine._snapshot.weights)
    assert len(specials) == 2
    for special in specials:
        assert special.program.settings.numerics == "elementwise"
        assert not made(special.program.report)
        assert any(note.startswith(NOTE) for note in special.program.report.notes)


def test_a_file_without_the_setting_is_of_the_default(model: nn.Module, x: torch.Tensor, tmp_path: Path):
    from rewrite.artifact.container import packed, unpacked

    path = tmp_path / "net"
    eager(model, x, pipeline=TEXT).save(path)
    members = unpacked(path.read_bytes(), "net")
    data = json.loads(members["programs.json"])
    del data["settings"]["numerics"]
    path.write_bytes(packed({**members, "programs.json": json.dumps(data).encode()}, {}))
    found = load(path, model, lower="eager")
    assert "fft-convolution" in made(found.report)


def test_the_cache_tells_them_apart(model: nn.Module, x: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path))
    found = [
        made(eager(model, x, pipeline=TEXT, numerics=numerics, cache=True).report)
        for numerics in ("default", "elementwise", "default", "elementwise")
    ]
    assert ["fft-convolution" in rules for rules in found] == [True, False, True, False]


def test_the_backend(model: nn.Module, x: torch.Tensor):
    for numerics, expected in (("default", True), ("elementwise", False)):
        torch._dynamo.reset()
        with torch.no_grad():
            found = compiled(model, pipeline="fft-convolution", numerics=numerics)(x)
            torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
        report = backend.reports()[-1].report
        assert ("fft-convolution" in made(report)) == expected
        assert any(note.startswith(NOTE) for note in report.notes) != expected


NET = ("tests.cli.nets:branches", "--input", "2,3,8,8", "--pipeline", "default, fft-convolution{saving=0.0}")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    from rewrite.cli import main

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return (code, *capsys.readouterr())

    return command


@pytest.mark.parametrize("command", ["optimize", "explain", "offers"])
def test_the_command_line(run: Any, command: str):
    code, out, _ = run(command, *NET, "--numerics", "elementwise", "--json")
    assert code == 0
    assert any(SAID.search(note) for note in json.loads(out)["notes"])
    code, out, _ = run(command, *NET, "--json")
    assert code == 0
    assert not any(SAID.search(note) for note in json.loads(out)["notes"])
    code, _, error = run(command, *NET, "--numerics", "normwise")
    assert code == 2
    assert "'default', 'elementwise'" in error
