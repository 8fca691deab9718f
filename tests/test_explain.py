"""``explain``: blocked models, each beside the model that follows the remedy; then what a caller can ask for.

After an intended change: ``UPDATE_GOLDEN=1 python -m pytest tests/test_explain.py``, then read what git says.
"""

from __future__ import annotations

import copy
import html
import json
import pickle
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import passes
from passes import FoldBatchNorm
from rewrite import Fidelity, InputError, PipelineError, Rule, explain, load, optimize, transform
from rewrite.ops import Convolution
from rewrite.pattern import Call, Op, Var
from rewrite.report import Explanation, Finding
from tests import corpus
from tests.golden.blocked import CASES, Chain, ConvNorm
from tests.golden.run import UPDATE, same_torch
from tests.passes.rewriting import scatter
from tests.programs import aten
from tests.toy_rules import Raises

GOLDEN = Path(__file__).parent / "golden" / "explain"


def inputs(name: str) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=CASES[name].dtype) for shape in CASES[name].inputs)


@cache
def explained(name: str) -> Explanation:
    case = CASES[name]
    torch.manual_seed(0)
    model = scatter(case.blocked())
    if case.training is not None:
        model.get_submodule(case.training).train()
    return explain(model, inputs(name), exclude=case.exclude)


def finding(name: str) -> Finding:
    """What an explanation says of the rule of a case."""
    [found] = [found for found in explained(name) if CASES[name].rule in (found.rule, *found.also)]
    return found


@same_torch
@pytest.mark.parametrize("name", CASES)
def test_explanation_is_as_before(name: str):
    text = f"{explained(name)}\n"
    path = GOLDEN / f"{name}.txt"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines()
    assert str(GOLDEN.parent) not in text


@pytest.mark.parametrize("name", CASES)
def test_cause_remedy_and_line_are_named(name: str):
    case, found = CASES[name], finding(name)
    assert found.rule == case.rule
    assert case.cause in found.reason
    assert case.remedy in found.remedy
    assert found.culprit
    assert case.line in found.culprit_text
    assert found.matched
    assert 0 < found.share < 1
    text = str(explained(name))
    assert found.reason in " ".join(text.split())
    assert all(line in text for line in found.matched)


@pytest.mark.parametrize("name", CASES)
def test_what_follows_the_remedy_matches(name: str):
    case = CASES[name]
    args = tuple(x.real if x.is_complex() else x for x in inputs(name))
    found = explain(scatter(case.mended()), args, case.then or case.rule)
    [coverage] = found.coverage
    assert coverage.matched, found
    assert not coverage.blocked, found


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_is_blocked_is_rewritten(name: str):
    [coverage] = [rule for rule in explained(name).coverage if rule.rule == CASES[name].rule]
    assert coverage.blocked
    assert coverage.places == coverage.matched + coverage.blocked


# -- what a caller can ask for ----------------------------------------------------------------------------------------


@pytest.mark.corpus
@pytest.mark.parametrize(("name", "training", "lines"), [
    ("resnet18", False, 45), pytest.param("repvgg_a0", False, 45, marks=pytest.mark.slow),
    pytest.param("resnet18", True, 45, marks=pytest.mark.slow), ("repvgg_a0", True, 85),
])  # fmt: skip
def test_explanations_of_networks_are_short(name: str, training: bool, lines: int):
    model = corpus.load(name).train(training)
    found = explain(model, torch.randn(2, 3, 64, 64), verify="off")
    assert len(str(found).splitlines()) <= lines
    blocking = [finding for finding in found if finding.gain.seconds]
    assert bool(blocking) == training
    assert all("call eval() on" in finding.remedy for finding in blocking)
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    blocked = {rule.rule: rule.blocked for rule in found.coverage}
    assert blocked["fold-batch-norm-after"] == (norms if training else 0)


def test_findings_of_repeated_blocks_are_one():
    model = nn.Sequential(*(ConvNorm(nn.BatchNorm2d(4)) for _ in range(3)), nn.BatchNorm2d(4)).eval()
    for block in model[:3]:
        block.norm.train()
    first, second = explain(model, torch.randn(2, 4, 9, 9))
    assert [place.module for place in first.places] == ["0.norm", "1.norm", "2.norm"]
    assert (first.source, first.text) == (first.places[2].source, "return self.norm(self.conv(x)).relu()")
    assert first.gain.flops == 2 * 4 * 2 * (7 * 7 + 5 * 5 + 3 * 3) // 2 // 2
    assert [place.module for place in second.places] == ["3"]
    assert first.share > second.share > 0


def test_data_round_trips_through_json():
    found = explained("branches_in_training")
    data = found.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["format"] == 1
    only = data["findings"][0]
    assert (only["rule"], only["step"], only["also"]) == ("merge-branches", "reparameterize", ["fold-batch-norm-after"])
    assert only["matched"] == list(found.findings[0].matched)
    assert only["gain"]["seconds"] == pytest.approx(only["share"] * data["whole"]["seconds"])
    merging = next(rule for rule in data["coverage"] if rule["rule"] == "merge-branches")
    assert {key: value for key, value in merging.items() if key != "starts"} == {
        "rule": "merge-branches",
        "step": "reparameterize",
        "matched": 0,
        "blocked": 1,
    }


def test_html_is_the_text_escaped():
    found = explained("wrong_stride")
    assert found._repr_html_() == f"<pre>{html.escape(str(found))}</pre>"


@pytest.fixture
def blocked() -> nn.Module:
    return scatter(ConvNorm(nn.BatchNorm2d(4, track_running_stats=False)))


IMAGE = torch.randn(2, 4, 6, 5)


@pytest.mark.parametrize("rule", ["fold-batch-norm-after", "fold-batch-norm", "reparameterize", FoldBatchNorm()])
def test_a_rule_a_pass_or_either_itself_can_be_asked_for(blocked: nn.Module, rule: object):
    found = explain(blocked, IMAGE, rule)
    assert [finding.rule for finding in found] == ["fold-batch-norm-after"]
    assert found.pipeline == (rule if isinstance(rule, str) else "fold-batch-norm")


def test_a_rule_that_finds_nothing_says_where_it_starts(blocked: nn.Module):
    text = str(explain(blocked, IMAGE, "merge-branches"))
    assert "no rule finds a place to begin" in text
    assert "none of what these start at is in the model:\n  merge-branches  a sum of layers" in text
    text = str(explain(blocked, IMAGE, NoSilu()))
    assert "no-silu  aten.silu.default" in text


def test_unknown_names_are_refused_with_the_nearest(blocked: nn.Module):
    with pytest.raises(InputError, match="rule='fold-batchnorm' is no rule or pass; did you mean 'fold-batch-norm'"):
        explain(blocked, IMAGE, "fold-batchnorm")
    with pytest.raises(InputError, match="neither a name nor a rule"):
        explain(blocked, IMAGE, FoldBatchNorm)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="did you mean 'simplify'"):
        explain(blocked, IMAGE, pipeline="simplfy")
    with pytest.raises(InputError, match="did you mean 'norm'"):
        explain(blocked, IMAGE, exclude="nrm")


def test_what_is_excluded_is_not_said_to_find_nothing(blocked: nn.Module):
    found = explain(blocked, IMAGE, exclude=("fold-batch-norm", "fold-constants"))
    assert not {"fold-batch-norm-after", "fold-constants"} & {rule.rule for rule in found.coverage}
    assert found.notes[-1].startswith(
        "fold-batch-norm-after, fold-behind-concatenation, fold-batch-norm-before, fold-constants did not run"
    )
    assert "no rule finds" in str(explain(blocked, IMAGE, "fold-constants", exclude="fold-constants"))


class PlusNothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0


def test_what_another_pass_clears_away_is_no_finding():
    model = scatter(Chain(nn.Conv2d(4, 4, 3), PlusNothing(), nn.BatchNorm2d(4)))
    found = explain(model, IMAGE, "fold-batch-norm-after")
    assert (found.coverage[0].matched, found.coverage[0].blocked) == (1, 0)
    [alone] = explain(model, IMAGE, "fold-batch-norm-after", pipeline="fold-batch-norm")
    assert alone.reason == "add stands between the layer and the norm"


def test_what_another_rule_takes_is_explained_where_it_began():
    """The norm goes into the layer before it, so it is not there for the layer behind it at the end."""
    model = scatter(Chain(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    pipeline = "reparameterize, fold-constants"
    assert not explain(model, IMAGE, pipeline=pipeline)
    [found] = explain(model, IMAGE, "fold-batch-norm-before", pipeline=pipeline)
    assert "pads with zeros" in found.reason


class Adapted(nn.Module):
    """A layer with an adapter of low rank, and another layer over the same input."""

    def __init__(self):
        super().__init__()
        self.base, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.base(x) + self.up(self.drop(self.down(x))), self.other(x)


def test_what_a_later_step_replaces_is_no_miss():
    """The two layers are too narrow to be one by themselves, and then become a part of the one beside them."""
    model = Adapted().eval()
    missed = explain(model, torch.randn(2, 16), pipeline="simplify, merge-linear")
    assert [finding.rule for finding in missed] == ["merge-linear"]
    found = explain(model, torch.randn(2, 16), pipeline="simplify, merge-linear, merge-low-rank")
    assert [(rule.matched, rule.blocked) for rule in found.coverage[-2:]] == [(0, 0), (1, 0)]
    assert not found


def test_a_rule_is_asked_at_its_own_place_in_the_pipeline():
    """Without it the next rule would merge the layers that it needs."""
    found = explain(Adapted().eval(), torch.randn(2, 16), "merge-low-rank")
    assert [(rule.matched, rule.blocked) for rule in found.coverage] == [(1, 0)]


def test_a_pipeline_of_ones_own_is_all_that_is_explained(blocked: nn.Module):
    found = explain(blocked, IMAGE, pipeline="simplify, fold-layer-scale")
    assert {rule.step for rule in found.coverage} == {"simplify", "fold-layer-scale"}
    assert not found


def test_the_last_word_of_a_rule_that_runs_twice_counts():
    """The first run is stopped by a copy, which the second step removes."""
    model = scatter(Chain(nn.Conv2d(4, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)))
    found = explain(model, IMAGE, pipeline="fold-batch-norm, simplify, fold-batch-norm")
    [coverage] = [rule for rule in found.coverage if rule.rule == "fold-batch-norm-after"]
    assert (coverage.matched, coverage.blocked) == (1, 0)
    assert not found


def test_exact_rules_beside_the_pipeline_are_tried_and_others_are_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(passes, "STEPS", (*passes.STEPS, NoSilu, OtherRelu))
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.SiLU(), nn.ReLU()).eval()
    coverage = {rule.rule: rule.matched for rule in explain(model, IMAGE).coverage}
    assert coverage["no-silu"] == 1
    assert "other-relu" not in coverage
    assert explain(model, IMAGE, "other-relu").coverage[0].matched == 1


@dataclass(frozen=True)
class NoSilu(Rule):
    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.silu.default, self=Var("x"))

    def rewrite(self, match, g):
        return g(aten.mul.Tensor, match.x, g(aten.sigmoid.default, match.x))


@dataclass(frozen=True)
class OtherRelu(NoSilu):
    fidelity = Fidelity.STRUCTURAL
    pattern = Call(aten.relu.default, self=Var("x"))


@dataclass(frozen=True)
class WrongRelu(OtherRelu):
    fidelity = Fidelity.ELEMENTWISE


def test_a_rewrite_that_verification_rejects_is_a_finding(blocked: nn.Module):
    [found] = explain(blocked, IMAGE, WrongRelu())
    assert found.rejected
    assert "allowed" in found.reason
    assert not found.remedy
    assert found.text == "return self.norm(self.conv(x)).relu()"
    assert "  rejected  " in str(explain(blocked, IMAGE, WrongRelu()))
    assert not explain(blocked, IMAGE, WrongRelu(), verify="off")


def test_a_rule_that_fails_is_a_finding_whatever_it_would_save(blocked: nn.Module):
    text = str(explain(blocked, IMAGE, Raises("find")))
    assert "1. raises" in text
    assert "rejected  find raised KeyError: 'lost'; the rule was switched off" in text


def test_a_declared_pattern_says_what_stands_between():
    @dataclass(frozen=True)
    class ReluOfConvolution(OtherRelu):
        pattern = Call(aten.relu.default, self=Op(Convolution))

    model = Chain(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.ReLU()).eval()
    [found] = explain(model, IMAGE, ReluOfConvolution())
    assert found.remedy == "take tanh in 'second' out from between"
    assert found.culprit_text == "x = self.second(x)"


def test_results_are_explained_by_their_models(blocked: nn.Module):
    text = str(explain(blocked, IMAGE))
    assert str(explain(optimize(blocked, IMAGE, lower="eager"), IMAGE)) == text
    assert str(explain(transform(blocked, IMAGE), IMAGE)) == text


def test_results_that_stand_alone_are_not_explained(tmp_path: Path):
    fast = optimize(scatter(ConvNorm(nn.BatchNorm2d(4))), IMAGE, lower="eager")
    fast.save(tmp_path / "net")
    loaded, released = load(tmp_path / "net", lower="eager"), optimize(fast, release=True)
    for alone in (loaded, released, pickle.loads(pickle.dumps(fast))):
        with pytest.raises(InputError, match=r"result of ConvNorm stands alone.*; explain the model that it was made"):
            explain(alone, IMAGE)


def test_the_algebra_of_rules_is_no_finding():
    """The factor's reshape is read twice after the merge, and both readers are the rule's own."""

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.scale, self.shift = (nn.Parameter(torch.rand(4, 1, 1) + 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale + self.shift

    found = explain(Affine().eval(), IMAGE)
    assert not found
    assert "merge-branches" in {rule.rule for rule in found.coverage if rule.matched}
    assert not any(rule.blocked for rule in found.coverage)


class Gated(nn.Module):
    """A layer that a norm and a gate read, and what its remedies make of it."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.conv, self.own, self.norm, self.way = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), way

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        normed = self.norm(y)
        gate = {"": y, "the norm": normed, "a module of its own": self.own(x)}[self.way]
        return normed + gate.sigmoid()


def test_a_layer_that_reaches_a_sum_twice_is_explained_by_what_can_be_followed():
    [found] = explain(scatter(Gated()), IMAGE)
    assert (found.rule, found.also) == ("fold-batch-norm-after", ())
    assert re.fullmatch(
        r"let sigmoid \(test_explain.py:\d+\) read the value of batch_norm in 'norm', or that of a module of its own",
        found.remedy,
    )
    for way in ("the norm", "a module of its own"):
        [coverage] = explain(scatter(Gated(way)), IMAGE, "fold-batch-norm-after").coverage
        assert (coverage.matched, coverage.blocked) == (1, 0)


def test_operators_of_python_are_called_by_words():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.norm(1 - self.conv(x)), self.norm(self.conv(x)[:, :, [1, 0]])

    text = str(explain(scatter(Model()), IMAGE, "fold-batch-norm-after"))
    words = {name for name in ("rsub", "indexing") if f"because  {name} stands between" in text}
    assert words == {"rsub", "indexing"}
    assert "apply the norm before indexing (" in text


def test_a_method_can_be_explained():
    class Model(ConvNorm):
        def features(self, x: Tensor, *, twice: bool) -> Tensor:
            return self.norm(x if twice else self.conv(x))

    found = explain(Model(nn.BatchNorm2d(4)).eval(), IMAGE, method="features", example_kwargs={"twice": True})
    assert [finding.reason for finding in found] == ["it follows neither a convolution nor a linear layer"]


def test_the_model_is_left_alone():
    model = scatter(ConvNorm(nn.BatchNorm2d(4)))
    model.norm.train()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    assert explain(model, IMAGE)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
